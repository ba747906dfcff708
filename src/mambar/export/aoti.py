"""AOTInductor: the exported program compiled to machine code for this type of CPU."""

import os
import shutil
from pathlib import Path

from torch import Tensor

from mambar.errors import InputError
from mambar.export.atomic_output import atomic_output
from mambar.export.parity import NUM_IMAGES, ParityReport, compare, probe_images, require, write_report
from mambar.export.program import traced
from mambar.export.traceable import input_size, traceable_model
from mambar.models.vision_mamba import VisionMamba


def export_aoti(
    model: VisionMamba,
    path: Path | str,
    *,
    img_size: int | tuple[int, int] | None = None,
    check: bool = True,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    force: bool = False,
) -> ParityReport:
    """Writes an `.aoti.pt2` for `torch._inductor.aoti_load_package`, and the parity report beside it.

    Batch size is dynamic, image size is fixed. Raises `InputError` if there is no C++ compiler.
    """
    import torch._inductor

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise InputError("AOTInductor needs a C++ compiler (g++ or CXX); install one, or use format=onnx.")
    path, size = Path(path), input_size(model, img_size)
    with atomic_output(path, force=force) as temporary:
        traceable = traceable_model(model)
        program = traced(traceable, model.config.in_chans, size)
        # AOTInductor requires the suffix .pt2; the file is renamed afterwards.
        package = temporary.with_name("package.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        package.replace(temporary)
        loaded = torch._inductor.aoti_load_package(str(temporary))
        if images is None:
            images = probe_images(NUM_IMAGES if check else 2, model.config.in_chans, size)
        report = compare(traceable, loaded, temporary, name=path, format="aoti", images=images, labels=labels)
        require(report)
    write_report(path, report)
    return report
