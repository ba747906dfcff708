"""torch.export: the model as one graph of aten operators, which runs without mambar; optionally with its kernels."""

import logging
import warnings
from pathlib import Path
from typing import Unpack

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from mambar.export.kernel_mixer import keep_kernels, kernel_mixer
from mambar.export.parity import ExportOptions, LogitsFunction, ParityReport, write_checked
from mambar.export.traceable import description, traceable_model
from mambar.models.vision_mamba import VisionMamba

logger = logging.getLogger(__name__)

# File in the .pt2 archive with class names and preprocessing.
EXTRA_FILE = "mambar.json"
_MAX_BATCH_SIZE = 1024
# In patches. Tracing would specialize on one row or column; 128 rows of 16 pixels are 2048 pixels.
_ROWS = (2, 128)


def traced(model: nn.Module, channels: int, size: tuple[int, int], *, patch: int | None = None) -> ExportedProgram:
    """The exported program of a `traceable_model` with dynamic batch; with `patch`, also dynamic height and width."""
    dynamic: dict[int, object] = {0: Dim("batch", min=1, max=_MAX_BATCH_SIZE)}
    if patch is not None:
        rows, cols = Dim("rows", min=_ROWS[0], max=_ROWS[1]), Dim("cols", min=_ROWS[0], max=_ROWS[1])
        dynamic |= {2: patch * rows, 3: patch * cols}
    logger.info("Tracing the model with torch.export.")
    # Tracing would specialize on a batch of one.
    example = torch.zeros(2, channels, *size)
    with torch.no_grad(), warnings.catch_warnings():
        # torch warns about its own internals.
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)


def traced_fixed_size(model: VisionMamba, size: tuple[int, int], *, kernels: bool) -> ExportedProgram:
    """The exported program of a model for one image size; with `kernels`, the CPU kernels are operators of it."""
    channels = model.config.in_chans
    if not kernels:
        return traced(traceable_model(model), channels, size)
    with keep_kernels():
        return traced(traceable_model(model, mixer=kernel_mixer), channels, size)


def export_program(
    model: VisionMamba, path: Path | str, *, kernels: bool = False, **options: Unpack[ExportOptions]
) -> ParityReport:
    """Writes a `.pt2` for `torch.export.load`, and a parity report beside it.

    Batch size is dynamic. Image size is fixed, because the scan is traced as a graph of logarithmic depth, whose
    number of steps depends on the number of tokens. kernels: keep the CPU kernels as operators `mambar::…`; the
    program is as fast as the model, and needs `import mambar.ops` before loading, and llvmlite.
    """

    def write(size: tuple[int, int], file: Path) -> LogitsFunction:
        program = traced_fixed_size(model, size, kernels=kernels)
        torch.export.save(program, file, extra_files={EXTRA_FILE: description(model)})
        return torch.export.load(file).module()

    comparison = {"format": "torch-export", "options": {"kernels": kernels}}
    return write_checked(model, [Path(path)], write, **options, **comparison)
