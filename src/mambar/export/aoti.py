"""AOTInductor: the exported program, compiled to machine code for the CPU of this machine."""

import logging
import os
import shutil
from pathlib import Path
from typing import Unpack

from mambar.errors import InputError
from mambar.export.parity import ExportOptions, LogitsFunction, ParityReport, write_checked
from mambar.export.program import traced_fixed_size
from mambar.models.vision_mamba import VisionMamba

logger = logging.getLogger(__name__)


def export_aoti(
    model: VisionMamba, path: Path | str, *, kernels: bool = False, **options: Unpack[ExportOptions]
) -> ParityReport:
    """Writes an `.aoti.pt2` for `torch._inductor.aoti_load_package`, and the parity report beside it.

    Batch size is dynamic, image size is fixed. kernels: as in `export_program`. Raises `InputError` if there is no
    C++ compiler.
    """
    import torch._inductor

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise InputError(
            "AOTInductor needs a C++ compiler (g++ or CXX); install one, or choose another format, such as onnx."
        )

    def write(size: tuple[int, int], file: Path) -> LogitsFunction:
        program = traced_fixed_size(model, size, kernels=kernels)
        logger.info("Compiling the traced graph to machine code.")
        # AOTInductor requires the suffix .pt2; the file is renamed afterwards.
        package = file.with_name("package.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        package.replace(file)
        return torch._inductor.aoti_load_package(str(file))

    return write_checked(model, [Path(path)], write, **options, format="aoti", options={"kernels": kernels})
