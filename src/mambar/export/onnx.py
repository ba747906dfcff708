"""ONNX: standard operators only, any batch, any height and width in patches, one file."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.export.atomic_output import atomic_output
from mambar.export.parity import NUM_IMAGES, TOLERANCE, ParityReport, Run, compare, probe_images, require, write_report
from mambar.export.program import traced
from mambar.export.scan_loop import ScanMixer, translations
from mambar.export.traceable import description, input_size, traceable_model
from mambar.models.vision_mamba import VisionMamba

OPSET = 20
# The place of class names and preprocessing among the file's metadata.
METADATA_KEY = "mambar"

Scan = Literal["loop", "doubling"]


def export_onnx(
    model: VisionMamba,
    path: Path | str,
    *,
    img_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    check: bool = True,
    scan: Scan = "loop",
    int8: bool = False,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    force: bool = False,
) -> ParityReport:
    """Writes an `.onnx` file with class names and preprocessing inside, and the parity report beside it.

    Input `images` (batch, channels, height, width), normalised float32; output `logits`. Batch, height and width
    are dynamic. `scan="doubling"` is for runtimes that lack the standard operator Scan: its graph is bigger, some
    twenty times slower, and fixed to `img_size`. `int8` stores the weights of the projections in eight bits (a
    quarter of the bytes); what that costs stands in the report. On the spot the file is held against the model on
    256 images; beyond 1e-5, or with another top 5, `MambarError` is raised and nothing is written. `check=False`
    looks at two images only. `images` (normalised) and `labels` replace the drawn ones.
    """
    _need_packages()
    if scan not in ("loop", "doubling"):
        raise InputError(f"scan={scan!r} is not known; choose loop or doubling.")
    path, size = Path(path), input_size(model, img_size)
    any_size = scan == "loop" and model.config.placement != "random"
    with atomic_output(path, force=force) as temporary:
        twin = traceable_model(model, mixer=ScanMixer if scan == "loop" else None, any_size=any_size)
        # Not kept in a variable: the graph holds the weights once more.
        _translated(twin, model, size, opset, any_size).save(temporary, external_data=False)
        if int8:
            from mambar.export.int8 import quantize

            quantize(temporary)
        _set_metadata(temporary, description(model))
        if images is None:
            images = probe_images(NUM_IMAGES if check else 2, model.config.in_chans, size)
        report = compare(
            traceable_model(model),
            onnx_runner(temporary),
            temporary,
            name=path,
            format="onnx int8" if int8 else "onnx",
            images=images,
            labels=labels,
            other_sizes=_other_sizes(size, model.patch_size) if any_size and check else (),
            tolerance=None if int8 else TOLERANCE,
            options={"opset": opset, "scan": scan, "dynamic_size": any_size},
        )
        require(report)
    write_report(path, report)
    return report


def _translated(twin: VisionMamba, model: VisionMamba, size: tuple[int, int], opset: int, any_size: bool) -> Any:
    graph = traced(twin, model.config.in_chans, size, patch=model.patch_size if any_size else None)
    with _quiet():
        program = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            custom_translation_table=translations(),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program


def _other_sizes(size: tuple[int, int], patch: int) -> tuple[tuple[int, int], ...]:
    """A wider and a smaller image, to see that height and width are free."""
    height, width = size
    return ((height + patch, width + 3 * patch), (max(height // 2 // patch, 2) * patch, width + patch))


def onnx_runner(path: Path, *, threads: int = 0) -> Run:
    """The file on onnxruntime's CPU provider, as a function of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def _set_metadata(path: Path, text: str) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    path.write_bytes(model.SerializeToString())


def _need_packages() -> None:
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}; install them with: pip install 'mambar[export]'.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its progress; ours stays on stdout only what was asked for."""
    before = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
