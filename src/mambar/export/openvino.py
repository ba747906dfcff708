"""OpenVINO export (.xml and .bin), converted from ONNX."""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.export.atomic_output import atomic_output
from mambar.export.onnx import export_onnx
from mambar.export.parity import NUM_IMAGES, LogitsFunction, ParityReport, compare, probe_images, require, write_report
from mambar.export.traceable import input_size, traceable_model
from mambar.messages import needs_package
from mambar.models.vision_mamba import VisionMamba


def export_openvino(
    model: VisionMamba,
    path: Path | str,
    *,
    img_size: int | tuple[int, int] | None = None,
    check: bool = True,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    force: bool = False,
) -> ParityReport:
    """Writes `path` (.xml) and its weights (.bin) for OpenVINO, and the parity report beside them.

    Batch size is dynamic, image size is fixed. Compared in float32: on some CPUs OpenVINO computes in bfloat16
    unless `INFERENCE_PRECISION_HINT` is f32. Raises `InputError` if openvino is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise InputError(needs_package("OpenVINO export", "openvino"))
    import openvino

    path, size = Path(path), input_size(model, img_size)
    weights = path.with_suffix(".bin")
    with TemporaryDirectory(prefix="mambar-openvino-") as directory:
        onnx = Path(directory) / "model.onnx"
        export_onnx(model, onnx, img_size=size, scan="doubling", check=False)
        graph: Any = openvino.convert_model(str(onnx))
        with atomic_output(weights, force=force) as temporary_bin, atomic_output(path, force=force) as temporary:
            openvino.save_model(graph, str(temporary), compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(temporary_bin)
            if images is None:
                images = probe_images(NUM_IMAGES if check else 2, model.config.in_chans, size)
            run = _runner(graph)
            report = compare(
                traceable_model(model), run, temporary_bin, name=path, format="openvino", images=images, labels=labels
            )
            require(report)
    write_report(path, report)
    return report


def _runner(graph: Any) -> LogitsFunction:
    import openvino

    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()])[0])

    return run
