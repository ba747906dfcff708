"""Every other format: the same promise, its own limits named."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mambar.errors import InputError
from mambar.export import FORMATS, export_model, export_program
from mambar.export.parity import report_path
from mambar.export.program import EXTRA_FILE
from mambar.models import VisionMamba, VisionMambaConfig

# Nothing can be traced through the shape-checking hook (`make shapes`).
pytestmark = pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="the shape-checking hook is in the way")

TINY = VisionMambaConfig(
    img_size=(16, 24), patch_size=8, embed_dim=8, depth=1, num_registers=2, num_classes=8, d_state=4
)


def tiny() -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(TINY).eval()


@pytest.mark.slow
def test_torch_export(tmp_path):
    model = tiny()
    model.classes = tuple("abcdefgh")
    report = export_program(model, tmp_path / "model.pt2")
    assert (
        report.passed
        and report.images == 256
        and json.loads(report_path(tmp_path / "model.pt2").read_text("utf-8"))["passed"]
    )
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra[EXTRA_FILE])["classes"] == list("abcdefgh")
    namespaces = {
        node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    }
    assert namespaces == {"aten"}
    images = torch.randn(5, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_executorch_runs_the_exported_program(tmp_path):
    """As in docs/deploy.md: for one image, because ExecuTorch plans its memory for the batch of the example."""
    exir = pytest.importorskip("executorch.exir", reason="executorch is optional; pip install executorch")
    from executorch.runtime import Runtime

    model = tiny()
    export_program(model, tmp_path / "model.pt2", check=False)
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(1, 3, 16, 24)
    edge = exir.to_edge(torch.export.export(program, (images,)))
    (tmp_path / "model.pte").write_bytes(edge.to_executorch().buffer)
    (logits,) = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward").execute([images])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mixer", "op"), [("bidirectional", "bidirectional_mix"), ("forward", "selective_scan")])
def test_torch_export_keeps_the_kernels(tmp_path, mixer, op):
    pytest.importorskip("llvmlite")
    torch.manual_seed(0)
    model = VisionMamba(TINY.replace(mixer=mixer)).eval()
    report = export_program(model, tmp_path / "model.pt2", kernels=True, check=False)
    assert report.passed and report.options == {"kernels": True}
    program = torch.export.load(tmp_path / "model.pt2")
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert f"mambar.{op}.default" in operators
    images = torch.randn(5, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_program_with_kernels_loads_in_another_process(tmp_path):
    pytest.importorskip("llvmlite")
    export_program(tiny(), tmp_path / "model.pt2", kernels=True, check=False)
    code = "import torch, mambar.ops; print(torch.export.load('model.pt2').module()(torch.zeros(3, 3, 16, 24)).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0 and done.stdout == "torch.Size([3, 8])\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [False, True])
def test_aotinductor(tmp_path, need_program, kernels):
    need_program("g++")
    if kernels:
        pytest.importorskip("llvmlite")
    report = export_model(tiny(), tmp_path / "model.aoti.pt2", format="aoti", kernels=kernels)
    assert report.passed and report.images == 256 and {1, 2, 7, 8} <= set(report.batches)


@pytest.mark.slow
def test_openvino(tmp_path):
    pytest.importorskip("openvino", reason="openvino is optional; pip install openvino")
    report = export_model(tiny(), tmp_path / "model.xml", format="openvino")
    assert report.passed and (tmp_path / "model.bin").is_file() and (tmp_path / "model.xml").is_file()
    assert len(report.image_sizes) == 4  # any height and width


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        export_model(tiny(), tmp_path / "model.aoti.pt2", format="aoti")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"\(extra cpu\); install with: pip install llvmlite"):
        export_model(tiny(), tmp_path / "model.pt2", format="torch-export", kernels=True)
    with pytest.raises(InputError, match="pip install openvino"):
        export_model(tiny(), tmp_path / "model.xml", format="openvino")
    with pytest.raises(InputError, match=r"\(extra export\); install with: pip install onnx"):
        export_model(tiny(), tmp_path / "model.onnx", format="onnx")


def test_formats_and_endings(tmp_path):
    assert set(FORMATS) == {"torch-export", "onnx", "aoti", "openvino"}
    with pytest.raises(InputError, match="choose one of torch-export, onnx, aoti, openvino"):
        export_model(tiny(), tmp_path / "x", format="tflite")
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        export_model(tiny(), tmp_path / "x.pt2", format="onnx")
