"""OpenVINO export (.xml and .bin), converted from ONNX."""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.export.onnx import Scan, export_onnx, has_any_size
from mambar.export.parity import ExportOptions, LogitsFunction, ParityReport, write_checked
from mambar.messages import needs_package
from mambar.models.vision_mamba import VisionMamba


def export_openvino(model: VisionMamba, path: Path | str, **options: Unpack[ExportOptions]) -> ParityReport:
    """Writes `path` (.xml) and its weights (.bin) for OpenVINO, and the parity report beside them.

    Batch size is dynamic, image size as in the ONNX file. Compared in float32: on some CPUs OpenVINO computes in
    bfloat16 unless `INFERENCE_PRECISION_HINT` is f32. Raises `InputError` if openvino is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise InputError(needs_package("OpenVINO export", "openvino"))
    import openvino

    scan: Scan = "loop" if model.config.mixer == "bidirectional" else "doubling"
    any_size = has_any_size(model, scan)

    def write(size: tuple[int, int], file: Path, weights: Path) -> LogitsFunction:
        with TemporaryDirectory(prefix="mambar-openvino-") as directory:
            onnx = Path(directory) / "model.onnx"
            export_onnx(model, onnx, img_size=size, scan=scan, check=False)
            graph: Any = openvino.convert_model(str(onnx))
            openvino.save_model(graph, str(file), compress_to_fp16=False)
            file.with_suffix(".bin").replace(weights)
        return _runner(graph)

    files = [Path(path), Path(path).with_suffix(".bin")]
    return write_checked(model, files, write, **options, any_size=any_size, format="openvino")


def _runner(graph: Any) -> LogitsFunction:
    import openvino

    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()])[0])

    return run
