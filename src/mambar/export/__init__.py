"""Exports a model to a file that runs without mambar: torch.export, ONNX, AOTInductor, OpenVINO.

Names are imported on first use, because `mambar.export.onnx_predict` also runs without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mambar.export.formats import FORMATS as FORMATS
    from mambar.export.formats import export_model as export_model
    from mambar.export.onnx import export_onnx as export_onnx
    from mambar.export.onnx_predict import OnnxModel as OnnxModel
    from mambar.export.parity import ParityReport as ParityReport
    from mambar.export.program import export_program as export_program

_FILES = {
    "FORMATS": "formats",
    "OnnxModel": "onnx_predict",
    "ParityReport": "parity",
    "export_model": "formats",
    "export_onnx": "onnx",
    "export_program": "program",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its file on first use."""
    if name not in _FILES:
        raise AttributeError(f"module 'mambar.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mambar.export.{_FILES[name]}"), name)
