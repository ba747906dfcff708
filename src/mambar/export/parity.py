"""Compares an exported file with the model, and writes the result beside the file."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mambar.atomic_files import write_atomically
from mambar.errors import MambarError
from mambar.export.atomic_output import atomic_output, exit_at_sigterm
from mambar.export.traceable import input_size, traceable_model
from mambar.models.vision_mamba import VisionMamba
from mambar.version import __version__

NUM_IMAGES = 256
# Of these, images of the model's own size where the file takes any size; most of the others are smaller, to save time.
NUM_OWN_SIZE = 64
TOLERANCE = 1e-5
# Batch sizes that are tested first; the rest is run in batches of 8.
BATCHES = (1, 2, 7)
FORMAT_VERSION = 1
_SECONDS_OF_SILENCE = 5.0

logger = logging.getLogger(__name__)

# Images (batch, channels, height, width) in, logits (batch, classes) out.
LogitsFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Comparison of an exported file with its model, both in float32 on the CPU.

    Attributes:
        format, file, bytes, sha256: the exported file.
        images, batches: number of images compared, and the batch sizes.
        image_sizes, images_per_size: (height, width) of the images, and the number of images of each size.
        max_difference: the largest absolute difference of logits.
        same_top1: number of images with the same best class.
        same_top5: number of images with the same five best classes. Two classes whose logits differ by less than
            twice the tolerance may be swapped.
        model_images_per_second, exported_images_per_second: measured on the images of the first size.
        tolerance: the allowed `max_difference`; None for int8, which differs by design.
        model_accuracy, exported_accuracy: fractions 0-1; None without labels.
        options: options of the format.
    """

    format: str
    file: str
    bytes: int
    sha256: str
    images: int
    image_sizes: tuple[tuple[int, int], ...]
    images_per_size: tuple[int, ...]
    batches: tuple[int, ...]
    max_difference: float
    same_top1: int
    same_top5: int
    tolerance: float | None
    model_images_per_second: float
    exported_images_per_second: float
    model_accuracy: float | None = None
    exported_accuracy: float | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True without a tolerance, or if logits are within it and every image has the same top 5."""
        if self.tolerance is None:
            return True
        return self.max_difference <= self.tolerance and self.same_top5 == self.images

    def to_dict(self) -> dict[str, Any]:
        """The content of the report file."""
        machine = {"mambar": __version__, "torch": torch.__version__, "machine": platform.machine()}
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "passed": self.passed, **machine}

    def lines(self) -> list[str]:
        """The report as lines of text."""
        sizes, (height, width) = _count_sizes(self.images_per_size, self.image_sizes), self.image_sizes[0]
        found = [
            f"{self.file}: {self.bytes / 1e6:.1f} MB, {self.format}",
            f"checked on {self.images} images ({sizes} pixels; batches of {', '.join(map(str, self.batches))}): "
            f"max |Δlogit| {self.max_difference:.1e}, same top 1 {self.same_top1}, same top 5 {self.same_top5}",
            f"images of {height}x{width} pixels per second on this CPU: {self.exported_images_per_second:.1f}, "
            f"the model itself {self.model_images_per_second:.1f}",
        ]
        if self.model_accuracy is not None and self.exported_accuracy is not None:
            found.append(f"accuracy on them: {self.exported_accuracy:.2%}, the model {self.model_accuracy:.2%}")
        return found


def probe_images(
    count: int, channels: int, size: tuple[int, int], *, seed: int = 0
) -> Float[Tensor, "count channels height width"]:
    """Random images: Gaussian noise, and every second one smooth blobs with the same standard deviation."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, *size, generator=draw)
    coarse = torch.randn(count, channels, 5, 5, generator=draw)
    blobs = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False) * 1.5
    smooth = (torch.arange(count) % 2 == 1)[:, None, None, None]
    return torch.where(smooth, blobs + 0.1 * noise, noise)


def _count_sizes(counts: Iterable[int], sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{count} of {height}x{width}" for count, (height, width) in zip(counts, sizes, strict=True))


def batches(images: Tensor) -> Iterator[Tensor]:
    """The images in batches of 1, 2 and 7, then of 8."""
    start = 0
    for size in BATCHES:
        if start < len(images):
            yield images[start : start + size]
            start += size
    if start < len(images):
        yield from images[start:].split(8)


def compare(
    model: VisionMamba,
    run: LogitsFunction,
    file: Path,
    *,
    name: Path,
    format: str,
    images: Tensor,
    labels: Tensor | None = None,
    other_images: Sequence[Tensor] = (),
    tolerance: float | None = TOLERANCE,
    options: dict[str, Any] | None = None,
) -> ParityReport:
    """Runs both on `images` and on images of other sizes, and compares the logits.

    name: the final path of `file`.
    """
    each_size = (images, *other_images)
    counts, sizes = tuple(map(len, each_size)), tuple((each.shape[2], each.shape[3]) for each in each_size)
    groups = [batch for each in each_size for batch in batches(each)]
    logits, seconds, total = ([], []), [0.0, 0.0], sum(counts)
    logger.info(
        "Comparing the logits of %s with the model's on %d images: %s pixels.",
        name.name,
        total,
        _count_sizes(counts, sizes),
    )
    logged = time.perf_counter()
    with torch.inference_mode():
        # Warm-up: the first call allocates memory and starts threads.
        for function in (model, run):
            function(images[:1])
        for batch in groups:
            for index, function in enumerate((model, run)):
                start = time.perf_counter()
                logits[index].append(function(batch).float().cpu())
                if batch.shape[2:] == images.shape[2:]:
                    seconds[index] += time.perf_counter() - start
            if time.perf_counter() - logged > _SECONDS_OF_SILENCE:
                logged = time.perf_counter()
                logger.info("Compared %d of %d images.", sum(map(len, logits[1])), total)
    wanted, given = map(torch.cat, logits)
    data = file.read_bytes()
    accuracies = {}
    if labels is not None:
        for key, each in (("model_accuracy", wanted), ("exported_accuracy", given)):
            accuracies[key] = (each[: len(labels)].argmax(1) == labels).float().mean().item()
    return ParityReport(
        format=format,
        file=str(name),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        images=len(wanted),
        image_sizes=sizes,
        images_per_size=counts,
        batches=tuple(sorted({len(batch) for batch in groups})),
        tolerance=tolerance,
        model_images_per_second=len(images) / seconds[0],
        exported_images_per_second=len(images) / seconds[1],
        options=options or {},
        **_agreement(wanted, given, tolerance),
        **accuracies,
    )


def _agreement(wanted: Tensor, given: Tensor, tolerance: float | None) -> dict[str, Any]:
    difference = (wanted - given).abs().max().item()
    if given.isnan().any() or given.shape != wanted.shape:
        difference = float("inf")
    top = min(5, wanted.shape[1])
    best, theirs = wanted.topk(top), given.topk(top).indices
    # The model's logits of the file's top classes, to allow a swap of almost equal ones.
    gap = (best.values - wanted.gather(1, theirs)).abs().amax(1)
    same_set = (best.indices.sort(1).values == theirs.sort(1).values).all(1)
    return {
        "max_difference": difference,
        "same_top1": int((wanted.argmax(1) == given.argmax(1)).sum()),
        "same_top5": int((same_set | (gap <= 2 * (tolerance or 0))).sum()),
    }


class ExportOptions(TypedDict, total=False):
    """Arguments of every export function.

    Attributes:
        img_size: image size in pixels, where the file has a fixed one; None: the model's.
        check: compare on 256 images; False: on two.
        images: normalized images to compare on, in place of random ones.
        labels: their classes, for the accuracy in the report.
        force: replace existing files.
    """

    img_size: int | tuple[int, int] | None
    check: bool
    images: Tensor | None
    labels: Tensor | None
    force: bool


def write_checked(
    model: VisionMamba,
    files: Sequence[Path],
    write: Callable[..., LogitsFunction],
    *,
    img_size: int | tuple[int, int] | None = None,
    check: bool = True,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    force: bool = False,
    any_size: bool = False,
    **comparison: Any,
) -> ParityReport:
    """Writes `files` with `write(size, *temporary_paths)`, which returns a function that runs them.

    The files are renamed when their logits equal the model's; the report, of the last file, is written beside the
    first. any_size: compare on other image sizes too. `comparison` is passed to `compare`.
    """
    size = input_size(model, img_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(exit_at_sigterm())
        temporary = [stack.enter_context(atomic_output(file, force=force)) for file in files]
        run = write(size, *temporary)
        channels, other_images = model.config.in_chans, []
        if any_size and check:
            num_half = NUM_IMAGES - NUM_OWN_SIZE - 6 if images is None else 3
            other_images = _images_of_other_sizes(channels, size, model.patch_size, num_half)
        if images is None:
            count = NUM_OWN_SIZE if other_images else NUM_IMAGES
            images = probe_images(count if check else 2, channels, size)
        comparison |= {"name": files[0], "images": images, "labels": labels, "other_images": other_images}
        report = compare(traceable_model(model), run, temporary[-1], **comparison)
        require(report)
    write_report(files[0], report)
    return report


def _images_of_other_sizes(channels: int, size: tuple[int, int], patch: int, num_half: int) -> list[Tensor]:
    """3 random images of a larger and a wider size, `num_half` of half the size: height and width must be dynamic."""
    height, width = size
    half_height, half_width = (max(side // 2 // patch, 2) * patch for side in size)
    counts = {(height + patch, width + 3 * patch): 3, (half_height, width + patch): 3}
    counts[half_height, half_width] = num_half
    return [probe_images(count, channels, each, seed=index + 1) for index, (each, count) in enumerate(counts.items())]


def require(report: ParityReport) -> None:
    """Raises `MambarError` unless the report passed."""
    if not report.passed:
        raise MambarError(
            f"{report.file} is not written: its logits differ from the model's by up to {report.max_difference:.2e} "
            f"(allowed {report.tolerance:.0e}), same top 5 on {report.same_top5} of {report.images} images."
        )


def report_path(path: Path) -> Path:
    """The path of the report of an exported file."""
    return path.with_name(path.name + ".parity.json")


def write_report(path: Path, report: ParityReport) -> None:
    """Writes the report beside the file; an older one is replaced."""
    write_atomically(report_path(path), (json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())
