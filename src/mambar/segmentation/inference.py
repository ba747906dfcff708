"""Inference on images of any size: whole or sliding windows, multi-scale, flipped.

Memory is bounded: full-size class scores exist only for a band of rows at a time. Of each window the coarse logits
(every 4 pixels) are kept until no later band needs them. An image of 4,000 x 4,000 pixels with 150 classes takes about
0.3 GB beside the model's activations; its full logits would take 9.6 GB.
"""

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
from mambar.deprecated import accept_old_names, translate
from mambar.errors import InputError
from mambar.json_fields import from_json_fields, to_json_fields
from mambar.segmentation.resample import bilinear, resample, support
from mambar.segmentation.segmenter import Segmenter

# Class scores in a band: 64 MB of float32.
_BAND_SIZE: Final = 1 << 24
# Fields of version 0.1.
_OLD_FIELDS: Final = {"batch": "batch_size"}


@accept_old_names(_OLD_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Inference:
    """Settings of sliding-window and multi-scale inference.

    Attributes:
        crop: side of a window in pixels; None for the whole image at once.
        stride: distance of neighboring windows in pixels; logits of overlapping windows are averaged.
        resize: (long, short); the image is resized, with its aspect ratio, to the largest size within these limits,
            e.g. (2048, 512) as published for ADE20K. None keeps its size.
        scales: further resize factors, whose probabilities are averaged.
        flip: average with the mirrored image at each scale.
        batch_size: windows in a forward pass.
    """

    crop: int | None = 512
    stride: int = 341
    resize: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.resize is not None:
            object.__setattr__(self, "resize", tuple(self.resize))
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.crop is not None and not 1 <= self.stride <= self.crop:
            raise InputError(f"stride={self.stride} must be from 1 to crop={self.crop}, to cover all pixels.")
        if self.resize is not None and not min(self.resize) >= 1:
            raise InputError(f"resize={self.resize} is not (long side, short side) in pixels; e.g. (2048, 512).")
        if not self.scales or not all(0.05 <= scale <= 20 for scale in self.scales):
            raise InputError(f"scales={self.scales} must be factors from 0.05 to 20; (1.0,) for none.")
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} is not a number of windows; use 1 or more.")

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) of the resized image at each scale."""
        factor = 1.0
        if self.resize is not None:
            factor = min(max(self.resize) / max(height, width), min(self.resize) / min(height, width))
        return [
            (max(round(height * factor * scale), 1), max(round(width * factor * scale), 1)) for scale in self.scales
        ]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return to_json_fields(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Inference":
        """The inverse of `to_dict`, also for fields of version 0.1; raises `InputError` for an unknown field."""
        return from_json_fields(cls, translate(fields, _OLD_FIELDS), what="inference")


@torch.inference_mode()
def probabilities(
    model: Segmenter,
    pixels: UInt8[Tensor, "channels height width"],
    inference: Inference,
    *,
    preprocessing: Preprocessing,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[range, Float[Tensor, "classes band width"]]]:
    """Yields (rows of the image, class probabilities) band by band, in float32 on the model's device.

    Images are resized with Pillow's anti-aliased bilinear filter, as in training, and then normalized. The model must
    be in evaluation mode.
    """
    height, width = pixels.shape[1:]
    parameter = next(model.parameters())
    scaled = []
    for size in inference.sizes(height, width):
        image = preprocessing.normalize(_scaled(pixels, size).to(parameter.device)).to(parameter.dtype)
        scaled.append(_ScaledLogits(model, image, inference, autocast, mirrored=False))
        if inference.flip:
            scaled.append(_ScaledLogits(model, image.flip(-1), inference, autocast, mirrored=True))
    step = max(_BAND_SIZE // (model.num_classes * width), 1)
    for top in range(0, height, step):
        rows = range(top, min(top + step, height))
        total = scaled[0].probabilities(rows, (height, width))
        for each in scaled[1:]:
            total += each.probabilities(rows, (height, width))
        yield rows, total.div_(len(scaled))


def predict(
    model: Segmenter,
    pixels: UInt8[Tensor, "channels height width"],
    inference: Inference,
    *,
    preprocessing: Preprocessing,
) -> tuple[UInt8[Tensor, "height width"], Float[Tensor, "height width"]]:
    """(most probable class of each pixel, its probability), on the CPU."""
    labels, confidence = [], []
    for _, band in probabilities(model, pixels, inference, preprocessing=preprocessing):
        best = band.max(0)
        labels.append(best.indices.to(torch.uint8).cpu())
        confidence.append(best.values.cpu())
    return torch.cat(labels), torch.cat(confidence)


def window_offsets(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along a side: every `stride` pixels; the last window ends with the side."""
    count = -(-max(length - crop, 0) // stride) + 1
    return [min(index * stride, max(length - crop, 0)) for index in range(count)]


class _ScaledLogits:
    """The mean logits of all windows of one scaled image; rows must be read from top to bottom."""

    def __init__(
        self,
        model: Segmenter,
        image: Float[Tensor, "channels height width"],
        inference: Inference,
        autocast: Callable[[], AbstractContextManager[object]],
        *,
        mirrored: bool,
    ) -> None:
        self.model, self.image, self.autocast, self.mirrored = model, image, autocast, mirrored
        self.batch_size = inference.batch_size
        height, width = image.shape[1:]
        crop = inference.crop or max(height, width)
        self.window = (min(crop, height), min(crop, width))
        self.tops = window_offsets(height, crop, inference.stride)
        self.lefts = window_offsets(width, crop, inference.stride)
        # Coarse logits of each row of windows that a later band may need, by the first pixel row.
        self.cache: dict[int, list[Tensor]] = {}

    def probabilities(self, rows: range, size: tuple[int, int]) -> Float[Tensor, "classes band width"]:
        """Class probabilities of some rows, after resizing the logits to `size`."""
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
        num_windows = torch.zeros(len(rows), width, device=self.image.device)
        padded = self.model.padded_size(self.window)
        for top in self.tops:
            inside = range(max(rows.start, top), min(rows.stop, top + self.window[0]))
            if not len(inside):
                continue
            band = slice(inside.start - rows.start, inside.stop - rows.start)
            for left, coarse in zip(self.lefts, self._row_of_windows(top), strict=True):
                vertical = bilinear(coarse.shape[-2], padded[0], coarse)[inside.start - top : inside.stop - top]
                horizontal = bilinear(coarse.shape[-1], padded[1], coarse)[: self.window[1]]
                total[:, band, left : left + self.window[1]] += resample(coarse, vertical, horizontal)[0]
                num_windows[band, left : left + self.window[1]] += 1
        for top in [top for top in self.cache if top + self.window[0] <= rows.start]:
            del self.cache[top]
        return total.div_(num_windows)

    def _row_of_windows(self, top: int) -> Sequence[Tensor]:
        if top not in self.cache:
            bottom, width = top + self.window[0], self.window[1]
            windows = [self.image[:, top:bottom, left : left + width] for left in self.lefts]
            row: list[Tensor] = []
            for start in range(0, len(windows), self.batch_size):
                with self.autocast():
                    coarse = self.model.coarse_logits(torch.stack(windows[start : start + self.batch_size]))
                row += coarse.float().split(1)
            self.cache[top] = row
        return self.cache[top]


def _scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return pil_to_tensor(to_pil_image(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
