"""Export formats by name."""

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

# Name → (export function, file suffix).
FORMATS: dict[str, tuple[Callable[..., ParityReport], str]] = {
    "torch-export": (export_program, ".pt2"),
    "onnx": (export_onnx, ".onnx"),
    "aoti": (export_aoti, ".aoti.pt2"),
    "openvino": (export_openvino, ".xml"),
}


def export_model(model: VisionMamba, path: Path | str, *, format: str, **options: Any) -> ParityReport:
    """Exports the model in a format of `FORMATS`; `options` are passed to its function (img_size, check, force, …)."""
    if format not in FORMATS:
        raise InputError(f"format={format!r} is unknown; choose one of {', '.join(FORMATS)}.")
    function, suffix = FORMATS[format]
    path = Path(path)
    if not path.name.endswith(suffix):
        raise InputError(f"{path} must end in {suffix} for format={format}.")
    return function(model, path, **options)
