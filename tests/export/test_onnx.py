"""An exported ONNX file says what the model says: any batch, any size, standard operators, one file."""

import json
import os
import re

import pytest
import torch

import mambar
from mambar.data import Preprocessing
from mambar.errors import InputError, MambarError
from mambar.export import ParityReport, export_onnx
from mambar.export import onnx as onnx_export
from mambar.export.parity import report_path
from mambar.models import VisionMamba, VisionMambaConfig

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

# Nothing can be traced through the shape-checking hook (`make shapes`).
pytestmark = pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="the shape-checking hook is in the way")

SMALL = VisionMambaConfig(
    img_size=(32, 48),
    patch_size=8,
    embed_dim=16,
    depth=2,
    num_registers=3,
    register_reduction=2,
    num_classes=10,
    d_state=4,
)


def trained_looking(config=SMALL) -> VisionMamba:
    """A model whose logits differ from image to image, as those of a fresh one hardly do."""
    torch.manual_seed(5)
    model = VisionMamba(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
        model.head.classifier.weight.mul_(20)
    model.classes = tuple(f"class {index}" for index in range(config.num_classes))
    model.preprocessing = Preprocessing(img_size=config.img_size, crop_pct=0.9)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model = trained_looking()
    return model, path, export_onnx(model, path)


def test_the_report_stands_beside_the_file(exported):
    _, path, report = exported
    assert isinstance(report, ParityReport) and report.passed
    assert report.max_difference <= 1e-5 and report.same_top5 == report.images == sum(report.images_per_size) == 256
    assert report.batches[:2] == (1, 2) and 7 in report.batches
    assert report.image_sizes[0] == (32, 48) and len(report.image_sizes) == 4
    written = json.loads(report_path(path).read_text("utf-8"))
    assert written["passed"] is True and written["max_difference"] == report.max_difference
    assert written["sha256"] == report.sha256 and written["bytes"] == path.stat().st_size
    assert "pixels per second" in "\n".join(report.lines())
    assert sorted(each.name for each in path.parent.iterdir()) == ["model.onnx", "model.onnx.parity.json"]


def test_logits_differ_from_image_to_image(exported):
    """The negative control of the comparison: it would see a file that always says the same."""
    model, _, _ = exported
    with torch.no_grad():
        logits = model(torch.randn(64, 3, 32, 48))
    assert logits.std(0).min() > 1e-2 and len(logits.argmax(1).unique()) > 2


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 16), (8 * 2, 8 * 9), (80, 88)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_and_any_size(exported, size, batch):
    model, path, _ = exported
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(onnx_export.onnx_runner(path)(images), model(images), rtol=0, atol=1e-5)


def test_an_image_of_nan_leaves_the_others_of_the_batch_alone(exported):
    model, path, _ = exported
    images = torch.randn(3, 3, 32, 48)
    images[1] = torch.nan
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_export.onnx_runner(path)(images), model(images), rtol=0, atol=1e-5, equal_nan=True
        )


def test_axes_are_named(exported):
    _, path, _ = exported
    graph = onnx.load(str(path)).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    assert shapes["images"] == ["batch", 3, "height", "width"] and shapes["logits"] == ["batch", 10]
    symbols = {word for shape in shapes.values() for axis in shape for word in re.findall("[a-z]+[0-9]*", str(axis))}
    assert symbols == {"batch", "height", "width", "rows", "cols"}


def test_openvino_compiles_the_file_for_any_batch_and_any_size(exported):
    openvino = pytest.importorskip("openvino")
    model, path, _ = exported
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, size in ((1, (32, 48)), (3, (32, 48)), (2, (16, 16)), (1, (80, 88))):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(compiled([images.numpy()])[0]), model(images), rtol=0, atol=1e-5
            )


def test_standard_operators_only(exported):
    _, path, _ = exported
    graph = onnx.load(str(path))
    assert {each.domain for each in graph.opset_import} <= {""} and graph.opset_import[0].version == 20
    assert not graph.functions
    assert all(node.domain == "" for node in graph.graph.node)
    assert sum(node.op_type == "Scan" for node in graph.graph.node) == 2
    onnx.checker.check_model(graph, full_check=False)
    assert {each.key for each in graph.metadata_props} == {"mambar"}


def test_the_model_is_left_as_it_was():
    model = trained_looking(SMALL.replace(depth=1)).to(torch.float64).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mixer = model.blocks[0].mixer
    traceable = onnx_export.traceable_model(model, mixer=onnx_export.ScanMixer, any_size=True)
    assert model.training and model.blocks[0].mixer is mixer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(traceable.parameters()).dtype == torch.float32 and not traceable.training
    shared = onnx_export.traceable_model(model.float(), mixer=onnx_export.ScanMixer)
    theirs, own = shared.blocks[0].mixer.in_proj.weight, model.blocks[0].mixer.in_proj.weight
    assert theirs.data_ptr() == own.data_ptr() and own.requires_grad and not theirs.requires_grad


@pytest.mark.parametrize(
    "fields",
    [
        {"placement": "middle", "head": "token", "num_registers": 1, "register_reduction": 1},
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in (
                {"placement": "begin", "head": "register_mean", "proj_bias": True},
                {"placement": "end", "head": "avg", "average_directions": False},
                {"placement": "spread", "head": "avg_all", "conv_bias": False, "num_registers": 5},
                {"num_classes": 0, "in_chans": 1},
                {"num_registers": 30},
                {"head": "widened", "num_registers": 1},
            )
        ),
    ],
    ids=str,
)
def test_every_kind_of_model_is_traced_right(fields):
    """The traceable's graph equals the model on other grids; run without torch's guards, which ONNX does not have."""
    torch.manual_seed(0)
    model = VisionMamba(SMALL.replace(depth=1, **fields)).eval()
    traceable = onnx_export.traceable_model(model, mixer=onnx_export.ScanMixer, any_size=True)
    graph = onnx_export.traced(traceable, model.config.in_chans, (32, 48), patch=8).module(check_guards=False)
    for size in ((32, 48), (40, 16), (16, 16)):
        images = torch.randn(2, model.config.in_chans, *size)
        with torch.no_grad():
            torch.testing.assert_close(graph(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_doubling_and_random_placement_are_fixed_to_one_size(tmp_path):
    model = trained_looking(SMALL.replace(depth=1))
    report = export_onnx(model, tmp_path / "doubling.onnx", scan="doubling")
    assert report.passed and len(report.image_sizes) == 1
    assert not any(node.op_type == "Scan" for node in onnx.load(str(tmp_path / "doubling.onnx")).graph.node)
    random = trained_looking(SMALL.replace(depth=1, placement="random"))
    assert export_onnx(random, tmp_path / "random.onnx").options["dynamic_size"] is False


@pytest.mark.slow
def test_int8_states_what_it_costs(tmp_path):
    model = trained_looking(SMALL.replace(embed_dim=64))
    plain = export_onnx(model, tmp_path / "plain.onnx", check=False)
    images = torch.randn(40, 3, 32, 48)
    with torch.no_grad():
        labels = model(images).argmax(1)
    report = export_onnx(model, tmp_path / "int8.onnx", int8=True, images=images, labels=labels)
    assert report.passed and report.tolerance is None and report.max_difference > 1e-4
    assert report.model_accuracy == 1 and 0.5 < report.exported_accuracy <= 1
    # Three of four bytes of every projection's weights go; scales and the nodes that quantise come.
    weights = 4 * sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert plain.bytes - report.bytes > 0.6 * weights
    assert "accuracy on them" in "\n".join(report.lines())


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    model = trained_looking(SMALL.replace(depth=1))
    honest = onnx_export.onnx_runner

    def off_by_a_little(path):
        run = honest(path)
        return lambda images: run(images) + 3e-5 * torch.eye(10)[0]

    monkeypatch.setattr(onnx_export, "onnx_runner", off_by_a_little)
    with pytest.raises(MambarError, match=r"is not written: its logits differ .* by up to .*e-05"):
        export_onnx(model, tmp_path / "model.onnx", check=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_by_surprise(exported, tmp_path):
    model, path, _ = exported
    with pytest.raises(InputError, match="exists already"):
        export_onnx(model, path)
    for wrong, words in (({"scan": "magic"}, "loop or doubling"), ({"img_size": 33}, "multiple of the patch")):
        with pytest.raises(InputError, match=words):
            export_onnx(model, tmp_path / "new.onnx", **wrong)


@pytest.mark.soak
def test_base_exports_whole(tmp_path):
    """Base within 8 GB and 500 MB; the ten minutes are measured by hand, tests do not look at clocks."""
    model = mambar.create_model("mambar_base_patch16_224").eval()
    report = export_onnx(model, tmp_path / "base.onnx", check=False)
    assert report.passed and report.bytes < 500e6
