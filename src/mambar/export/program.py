"""torch.export: the model as one graph of aten operators, which runs without mambar."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mambar.export.atomic_output import atomic_output
from mambar.export.parity import NUM_IMAGES, ParityReport, compare, probe_images, require, write_report
from mambar.export.traceable import description, input_size, traceable_model
from mambar.models.vision_mamba import VisionMamba

# File in the .pt2 archive with class names and preprocessing.
EXTRA_FILE = "mambar.json"
_LARGEST_BATCH = 1024
# In patches. Tracing would specialize on one row or column; 128 rows of 16 pixels are 2048 pixels.
_ROWS = (2, 128)


def traced(model: nn.Module, channels: int, size: tuple[int, int], *, patch: int | None = None) -> ExportedProgram:
    """The exported program of a `traceable_model` with dynamic batch; with `patch`, also dynamic height and width."""
    dynamic: dict[int, object] = {0: Dim("batch", min=1, max=_LARGEST_BATCH)}
    if patch is not None:
        rows, cols = Dim("rows", min=_ROWS[0], max=_ROWS[1]), Dim("cols", min=_ROWS[0], max=_ROWS[1])
        dynamic |= {2: patch * rows, 3: patch * cols}
    # Tracing would specialize on a batch of one.
    example = torch.zeros(2, channels, *size)
    with torch.no_grad(), warnings.catch_warnings():
        # torch warns about its own internals.
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)


def export_program(
    model: VisionMamba,
    path: Path | str,
    *,
    img_size: int | tuple[int, int] | None = None,
    check: bool = True,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    force: bool = False,
) -> ParityReport:
    """Writes a `.pt2` for `torch.export.load`, and a parity report beside it.

    Batch size is dynamic. Image size is fixed, because the scan is traced as a graph of logarithmic depth, whose
    number of steps depends on the number of tokens. Other arguments as in `export_onnx`.
    """
    path, size = Path(path), input_size(model, img_size)
    with atomic_output(path, force=force) as temporary:
        traceable = traceable_model(model)
        program = traced(traceable, model.config.in_chans, size)
        torch.export.save(program, temporary, extra_files={EXTRA_FILE: description(model)})
        loaded = torch.export.load(temporary).module()
        if images is None:
            images = probe_images(NUM_IMAGES if check else 2, model.config.in_chans, size)
        report = compare(traceable, loaded, temporary, name=path, format="torch-export", images=images, labels=labels)
        require(report)
    write_report(path, report)
    return report
