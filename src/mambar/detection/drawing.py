"""Images with the boxes, names and masks of objects."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from mambar.analysis.draw.color_maps import label_font
from mambar.analysis.figure_label import printable
from mambar.data.segmentation.masks import palette

# Pixels: the longest side of a picture, and the width to which small images are enlarged for legible captions.
_MAX_SIDE: Final = 8192
_MIN_WIDTH: Final = 320
# Weights of red, green and blue in the brightness of a color (ITU-R BT.601).
_LUMA: Final = (0.299, 0.587, 0.114)


def draw_objects(
    image: UInt8[Tensor, "3 height width"],
    boxes: Float[Tensor, "objects 4"],
    labels: Sequence[int],
    captions: Sequence[str],
    mask: Callable[[int], Bool[np.ndarray, "height width"] | None] = lambda index: None,
) -> UInt8[np.ndarray, "rows cols 3"]:
    """The image with a box in the color of its class, a caption, and the mask for each object, the first on top.

    Small images are enlarged by a whole factor; an image above 8192 pixels is reduced to every n-th row and column.
    """
    colors: list[Any] = [palette(label + 1)[label] for label in labels]
    drawn = image
    for index in reversed(range(len(colors))):
        pixels = mask(index)
        if pixels is not None and pixels.any():
            drawn = draw_segmentation_masks(drawn, torch.from_numpy(pixels)[None], alpha=0.5, colors=[colors[index]])
    height, width = image.shape[1:]
    step, factor = -(-max(height, width) // _MAX_SIDE), max(1, -(-_MIN_WIDTH // max(width, 1)))
    factor = max(1, min(factor, _MAX_SIDE // max(height, width, 1)))
    drawn = drawn[:, ::step, ::step].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if len(boxes):
        size = int(np.clip(drawn.shape[2] / 50, 12, 40))
        drawn = draw_bounding_boxes(
            drawn,
            boxes.float().flip(0) * factor / step,
            labels=[printable(caption) for caption in captions[::-1]],
            colors=colors[::-1],
            width=max(2, size // 6),
            font=str(label_font()),
            font_size=size,
            label_background_colors=colors[::-1],
            label_colors=["white" if np.dot(color, _LUMA) < 150 else "black" for color in colors[::-1]],
            fill_labels=True,
        )
    return np.ascontiguousarray(drawn.permute(1, 2, 0).numpy())
