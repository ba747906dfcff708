"""From an image of any size to a class for every pixel: whole or by sliding windows, several scales, flipped.

Memory is bounded: class scores exist only for a band of rows at a time. What is kept of a window are its coarse
logits (every 4 pixels), and only as long as a band can still touch them. A 4,000-pixel square image with 150 classes
needs about 0.3 GB beside the model's own activations, where its full logits would take 9.6.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mambar.data.transforms.classification import pil_to_tensor, to_pil_image
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.segmentation.resample import bilinear, resample, support
from mambar.segmentation.segmenter import Segmenter

# Numbers in a band of scores: 64 MB of float32.
_BAND: Final = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a trained segmenter looks at an image, checked when made.

    crop: a window's side in pixels (None: the whole image at once). stride: from window to window; scores of
    overlapping windows are averaged. resize: (long, short): the image is scaled, proportions kept, to the largest
    size within these, e.g. (2048, 512) as published for ADE20K; None keeps its size. scales: further factors; the
    probabilities of all are averaged. flip: each scale also mirrored. batch: windows at a time.
    """

    crop: int | None = 512
    stride: int = 341
    resize: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 4

    def __post_init__(self) -> None:
        if self.resize is not None:
            object.__setattr__(self, "resize", tuple(self.resize))
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.crop is not None and not 1 <= self.stride <= self.crop:
            raise InputError(f"stride={self.stride} must lie between 1 and crop={self.crop}, or pixels are left out.")
        if self.resize is not None and not min(self.resize) >= 1:
            raise InputError(f"resize={self.resize} is not (long side, short side) in pixels; e.g. (2048, 512).")
        if not self.scales or not all(0.05 <= scale <= 20 for scale in self.scales):
            raise InputError(f"scales={self.scales} must be factors from 0.05 to 20; (1.0,) for none.")
        if self.batch < 1:
            raise InputError(f"batch={self.batch} is not a number of windows; use 1 or more.")

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) at which an image is looked at, one a scale."""
        factor = 1.0
        if self.resize is not None:
            factor = min(max(self.resize) / max(height, width), min(self.resize) / min(height, width))
        return [
            (max(round(height * factor * scale), 1), max(round(width * factor * scale), 1)) for scale in self.scales
        ]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Inference":
        """Undoes `to_dict`; an unknown field raises `InputError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise InputError(f"inference has no field {name!r}; it has {', '.join(known)}.")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**plain)


@torch.inference_mode()
def probabilities(
    model: Segmenter,
    pixels: UInt8[Tensor, "channels height width"],
    settings: Inference,
    *,
    preprocessing: Preprocessing,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[range, Float[Tensor, "classes band width"]]]:
    """Class probabilities band by band from the top: (rows of the image, float32 on the model's device).

    `pixels` as stored; scaling is Pillow's bilinear (anti-aliased, the same as in training), then normalization. The
    model should be in evaluation mode.
    """
    height, width = pixels.shape[1:]
    like = next(model.parameters())
    fields = []
    for size in settings.sizes(height, width):
        image = preprocessing.normalize(_scaled(pixels, size).to(like.device)).to(like.dtype)
        fields.append(_Field(model, image, settings, autocast, mirrored=False))
        if settings.flip:
            fields.append(_Field(model, image.flip(-1), settings, autocast, mirrored=True))
    step = max(_BAND // (model.num_classes * width), 1)
    for top in range(0, height, step):
        rows = range(top, min(top + step, height))
        total = fields[0].probabilities(rows, (height, width))
        for field in fields[1:]:
            total += field.probabilities(rows, (height, width))
        yield rows, total.div_(len(fields))


def predict(
    model: Segmenter,
    pixels: UInt8[Tensor, "channels height width"],
    settings: Inference,
    *,
    preprocessing: Preprocessing,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[UInt8[Tensor, "height width"], Float[Tensor, "height width"]]:
    """(the most probable class of each pixel, its probability), on the CPU."""
    labels, sure = [], []
    for _, band in probabilities(model, pixels, settings, preprocessing=preprocessing, autocast=autocast):
        best = band.max(0)
        labels.append(best.indices.to(torch.uint8).cpu())
        sure.append(best.values.cpu())
    return torch.cat(labels), torch.cat(sure)


def window_offsets(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows of a side begin: every `stride` pixels, the last one flush with the end."""
    count = -(-max(length - crop, 0) // stride) + 1
    return [min(index * stride, max(length - crop, 0)) for index in range(count)]


class _Field:
    """The mean logits of all windows over one scaled image, asked for from the top to the bottom."""

    def __init__(
        self,
        model: Segmenter,
        image: Float[Tensor, "channels height width"],
        settings: Inference,
        autocast: Callable[[], AbstractContextManager[object]],
        *,
        mirrored: bool,
    ) -> None:
        self.model, self.image, self.autocast, self.mirrored = model, image, autocast, mirrored
        self.batch = settings.batch
        height, width = image.shape[1:]
        crop = settings.crop or max(height, width)
        self.window = (min(crop, height), min(crop, width))
        self.tops = window_offsets(height, crop, settings.stride)
        self.lefts = window_offsets(width, crop, settings.stride)
        # Coarse logits of the rows of windows that a band may still need, by their top.
        self.kept: dict[int, list[Tensor]] = {}

    def probabilities(self, rows: range, size: tuple[int, int]) -> Float[Tensor, "classes band width"]:
        """The probabilities in some rows of the image scaled to `size`."""
        height, width = self.image.shape[1:]
        if (height, width) == size:
            logits = self._logits(rows)
        else:
            needed = support(height, size[0], rows)
            vertical = bilinear(height, size[0], self.image)[rows.start : rows.stop, needed.start : needed.stop]
            horizontal = bilinear(width, size[1], self.image)
            logits = resample(self._logits(needed)[None], vertical, horizontal)[0]
        return (logits.flip(-1) if self.mirrored else logits).softmax(0)

    def _logits(self, rows: range) -> Float[Tensor, "classes band width"]:
        width = self.image.shape[2]
        total = torch.zeros(self.model.num_classes, len(rows), width, device=self.image.device)
        times = torch.zeros(len(rows), width, device=self.image.device)
        filled = self.model.padded_size(self.window)
        for top in self.tops:
            inside = range(max(rows.start, top), min(rows.stop, top + self.window[0]))
            if not len(inside):
                continue
            band = slice(inside.start - rows.start, inside.stop - rows.start)
            for left, coarse in zip(self.lefts, self._row_of_windows(top), strict=True):
                vertical = bilinear(coarse.shape[-2], filled[0], coarse)[inside.start - top : inside.stop - top]
                horizontal = bilinear(coarse.shape[-1], filled[1], coarse)[: self.window[1]]
                total[:, band, left : left + self.window[1]] += resample(coarse, vertical, horizontal)[0]
                times[band, left : left + self.window[1]] += 1
        for top in [top for top in self.kept if top + self.window[0] <= rows.start]:
            del self.kept[top]
        return total.div_(times)

    def _row_of_windows(self, top: int) -> Sequence[Tensor]:
        if top not in self.kept:
            bottom, width = top + self.window[0], self.window[1]
            windows = [self.image[:, top:bottom, left : left + width] for left in self.lefts]
            row: list[Tensor] = []
            for start in range(0, len(windows), self.batch):
                with self.autocast():
                    coarse = self.model.coarse_logits(torch.stack(windows[start : start + self.batch]))
                row += coarse.float().split(1)
            self.kept[top] = row
        return self.kept[top]


def _scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return pil_to_tensor(to_pil_image(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
