"""Does an exported file say what the model says? Held against it on the spot, and written down beside it."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mambar.errors import MambarError
from mambar.models.vision_mamba import VisionMamba
from mambar.version import __version__

NUM_IMAGES = 256
TOLERANCE = 1e-5
# Dynamic batches are tried out, not believed; the rest goes in eights.
BATCHES = (1, 2, 7)
FORMAT_VERSION = 1

# Images (batch, channels, height, width) in, logits (batch, classes) out.
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How an exported file compares with the model it was made from, both in float32 on the CPU.

    max_difference: the largest |Δlogit| over all images. same_top5: images with the same five best classes
    (a swap of two whose logits differ by less than twice the tolerance is the same). tolerance: None where a
    difference is the point of the format (int8). Accuracies, fractions 0-1, stand only where labels were given.
    """

    format: str
    file: str
    bytes: int
    sha256: str
    images: int
    image_sizes: tuple[tuple[int, int], ...]
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
        """Within the tolerance and with the same five best classes on every image; true where none is set."""
        if self.tolerance is None:
            return True
        return self.max_difference <= self.tolerance and self.same_top5 == self.images

    def to_dict(self) -> dict[str, Any]:
        """The content of the report's file."""
        machine = {"mambar": __version__, "torch": torch.__version__, "machine": platform.machine()}
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "passed": self.passed, **machine}

    def lines(self) -> list[str]:
        """What a person wants to read of it."""
        sizes = ", ".join(f"{height}x{width}" for height, width in self.image_sizes)
        found = [
            f"{self.file}: {self.bytes / 1e6:.1f} MB, {self.format}",
            f"checked on {self.images} images ({sizes} pixels, batches of {', '.join(map(str, self.batches))}): "
            f"max |Δlogit| {self.max_difference:.1e}, same best class {self.same_top1}, same top 5 {self.same_top5}",
            f"images per second on this CPU: {self.exported_images_per_second:.1f}, "
            f"the model itself {self.model_images_per_second:.1f}",
        ]
        if self.model_accuracy is not None and self.exported_accuracy is not None:
            found.append(f"accuracy on them: {self.exported_accuracy:.2%}, the model {self.model_accuracy:.2%}")
        return found


def probe_images(
    count: int, channels: int, size: tuple[int, int], *, seed: int = 0
) -> Float[Tensor, "count channels height width"]:
    """Images to compare on: normal noise and, every second one, smooth blobs of the same spread."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, *size, generator=draw)
    coarse = torch.randn(count, channels, 5, 5, generator=draw)
    blobs = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False) * 1.5
    smooth = (torch.arange(count) % 2 == 1)[:, None, None, None]
    return torch.where(smooth, blobs + 0.1 * noise, noise)


def batches(images: Tensor) -> Iterator[Tensor]:
    """The images in batches of 1, 2 and 7, then of 8."""
    start = 0
    for size in BATCHES:
        if start < len(images):
            yield images[start : start + size]
            start += size
    yield from images[start:].split(8)


def compare(
    model: VisionMamba,
    run: Run,
    file: Path,
    *,
    name: Path,
    format: str,
    images: Tensor,
    labels: Tensor | None = None,
    other_sizes: tuple[tuple[int, int], ...] = (),
    fixed_batch: int | None = None,
    tolerance: float | None = TOLERANCE,
    options: dict[str, Any] | None = None,
) -> ParityReport:
    """Runs both over `images`, and over a few of each other size, and says how they differ.

    `name` is where the file will stand. `fixed_batch`: all batches of this size, for a format that knows no other.
    """
    groups = [list(batches(images) if fixed_batch is None else images.split(fixed_batch))]
    channels = images.shape[1]
    groups += [list(probe_images(3, channels, size, seed=index + 1).split(2)) for index, size in enumerate(other_sizes)]
    expected, found, seconds = [], [], [0.0, 0.0]
    with torch.inference_mode():
        for batch in groups[0][:1]:
            # The first call of either prepares memory and threads.
            for function in (model, run):
                function(batch)
        for group in groups:
            for batch in group:
                for index, (function, kept) in enumerate(((model, expected), (run, found))):
                    begun = time.perf_counter()
                    kept.append(function(batch).float().cpu())
                    seconds[index] += time.perf_counter() - begun
    wanted, given = torch.cat(expected), torch.cat(found)
    agreement = _agreement(wanted, given, tolerance)
    data = file.read_bytes()
    accuracies = {}
    if labels is not None:
        for key, logits in (("model_accuracy", wanted), ("exported_accuracy", given)):
            accuracies[key] = (logits[: len(labels)].argmax(1) == labels).float().mean().item()
    return ParityReport(
        format=format,
        file=str(name),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        images=len(wanted),
        image_sizes=((images.shape[2], images.shape[3]), *other_sizes),
        batches=tuple(sorted({len(batch) for batch in groups[0]})),
        tolerance=tolerance,
        model_images_per_second=len(wanted) / seconds[0],
        exported_images_per_second=len(wanted) / seconds[1],
        options=options or {},
        **agreement,
        **accuracies,
    )


def _agreement(wanted: Tensor, given: Tensor, tolerance: float | None) -> dict[str, Any]:
    difference = (wanted - given).abs().max().item()
    if given.isnan().any() or given.shape != wanted.shape:
        difference = float("inf")
    top = min(5, wanted.shape[1])
    best, theirs = wanted.topk(top), given.topk(top).indices
    # Logits of the classes the file puts first, as the model sees them: a swap of near equals is none.
    gap = (best.values - wanted.gather(1, theirs)).abs().amax(1)
    same_set = (best.indices.sort(1).values == theirs.sort(1).values).all(1)
    return {
        "max_difference": difference,
        "same_top1": int((wanted.argmax(1) == given.argmax(1)).sum()),
        "same_top5": int((same_set | (gap <= 2 * (tolerance or 0))).sum()),
    }


def require(report: ParityReport) -> None:
    """Raises `MambarError` unless the report passed; then nothing is written."""
    if not report.passed:
        raise MambarError(
            f"{report.file} is not written: its logits differ from the model's by up to {report.max_difference:.2e} "
            f"(allowed {report.tolerance:.0e}), same top 5 on {report.same_top5} of {report.images} images."
        )


def report_path(path: Path) -> Path:
    """Where the report of an exported file stands: beside it."""
    return path.with_name(path.name + ".parity.json")


def write_report(path: Path, report: ParityReport) -> None:
    """Writes the report beside the file, in place of an older one."""
    from mambar.export.atomic_output import atomic_output

    with atomic_output(report_path(path), force=True) as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
