"""The formats a model can be exported to, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mambar.errors import InputError
from mambar.export.aoti import export_aoti
from mambar.export.onnx import export_onnx
from mambar.export.openvino import export_openvino
from mambar.export.parity import ParityReport
from mambar.export.program import export_program
from mambar.models.vision_mamba import VisionMamba

# Name → (function, ending of its file).
FORMATS: dict[str, tuple[Callable[..., ParityReport], str]] = {
    "torch-export": (export_program, ".pt2"),
    "onnx": (export_onnx, ".onnx"),
    "aoti": (export_aoti, ".aoti.pt2"),
    "openvino": (export_openvino, ".xml"),
}


def export_model(model: VisionMamba, path: Path | str, *, format: str, **options: Any) -> ParityReport:
    """Writes the model in a format of `FORMATS`; options are those of its function (img_size, check, force, …)."""
    if format not in FORMATS:
        raise InputError(f"format={format!r} is not known; choose one of {', '.join(FORMATS)}.")
    function, ending = FORMATS[format]
    path = Path(path)
    if not path.name.endswith(ending):
        raise InputError(f"{path} must end in {ending} for format={format}.")
    return function(model, path, **options)
