"""ONNX export to one file: standard operators; dynamic batch, height and width."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.export.parity import TOLERANCE, ExportOptions, LogitsFunction, ParityReport, write_checked
from mambar.export.program import traced
from mambar.export.scan_loop import ScanMixer, translations
from mambar.export.traceable import description, traceable_model
from mambar.messages import needs_package
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.placement import PLACEMENTS, CountRule

logger = logging.getLogger(__name__)

OPSET = 20
# Metadata key of class names and preprocessing.
METADATA_KEY = "mambar"

Scan = Literal["loop", "doubling"]


def export_onnx(
    model: VisionMamba,
    path: Path | str,
    *,
    opset: int = OPSET,
    scan: Scan = "loop",
    int8: bool = False,
    **options: Unpack[ExportOptions],
) -> ParityReport:
    """Writes an `.onnx` file with class names and preprocessing in its metadata, and a parity report beside it.

    Input: `images` (batch, channels, height, width), normalized float32. Output: `logits` (batch, classes). Dynamic
    axes are named batch, height and width. The file is compared
    with the model; a difference above 1e-5 or another top 5 raises `MambarError` and nothing is written.

    int8: quantize the projection weights (a quarter of the bytes); the report has the differences. scan: "loop" uses
    the operator Scan; "doubling" is for runtimes without it: about 20 times slower, with a larger graph and a fixed
    image size. options: see `ExportOptions`.
    """
    _need_packages()
    if scan not in ("loop", "doubling"):
        raise InputError(f"scan={scan!r} is unknown; choose loop or doubling.")
    any_size = has_any_size(model, scan)

    def write(size: tuple[int, int], file: Path) -> LogitsFunction:
        traceable = traceable_model(model, mixer=ScanMixer if scan == "loop" else None, any_size=any_size)
        # Not assigned to a variable: the program has a copy of the weights.
        _to_onnx(traceable, model, size, opset, any_size).save(file, external_data=False)
        if int8:
            _quantize(file)
        _label(file, description(model))
        return onnx_runner(file)

    return write_checked(
        model,
        [Path(path)],
        write,
        **options,
        any_size=any_size,
        format="onnx int8" if int8 else "onnx",
        tolerance=None if int8 else TOLERANCE,
        options={"opset": opset, "scan": scan, "dynamic_size": any_size},
    )


def has_any_size(model: VisionMamba, scan: Scan) -> bool:
    """Whether a file of this model takes any height and width: the register positions must follow from the tokens."""
    placement = model.config.placement
    return scan == "loop" and placement != "random" and isinstance(PLACEMENTS[placement], CountRule)


def _to_onnx(traceable: VisionMamba, model: VisionMamba, size: tuple[int, int], opset: int, any_size: bool) -> Any:
    graph = traced(traceable, model.config.in_chans, size, patch=model.patch_size if any_size else None)
    logger.info("Translating the traced graph to ONNX.")
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
            optimize=False,
        )
        assert program is not None
        _simplify(program.model)
    return program


def _simplify(graph: Any) -> None:
    """Folds constants, which makes the weights initializers, and removes unused nodes.

    The rewrite rules of the exporter's own optimizer take most of its time and make the file 3 % faster.
    """
    import onnxscript.optimizer
    from onnx_ir.passes import common

    common.InlinePass()(graph)
    onnxscript.optimizer.fold_constants(graph)
    common.RemoveUnusedNodesPass()(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    common.LiftSubgraphInitializersToMainGraphPass()(graph)
    common.DeduplicateInitializersPass()(graph)


def onnx_runner(path: Path) -> LogitsFunction:
    """A function of images that runs the file on onnxruntime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def _quantize(path: Path) -> None:
    """Quantizes the constant matrices of a file in place: int8 weights, activations quantized at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    # onnxruntime uses the recorded shapes of intermediate values; the exporter's have the wrong form for it.
    del model.graph.value_info[:]
    quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )


def _label(path: Path, text: str) -> None:
    """Writes the metadata, and names of dynamic axes in place of the exporter's numbered symbols."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    axes = model.graph.input[0].type.tensor_type.shape.dim
    # Height and width are traced as multiples of the patch: "16*s30".
    symbols = {axes[index].dim_param.split("*")[-1]: name for index, name in ((0, "batch"), (2, "rows"), (3, "cols"))}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), axis.dim_param)
    for index, name in ((2, "height"), (3, "width")):
        if axes[index].dim_param:
            axes[index].dim_param = name
    path.write_bytes(model.SerializeToString())


def _need_packages() -> None:
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(needs_package("ONNX export", *missing, extra="export"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which the exporter neither prints nor logs its progress."""
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
