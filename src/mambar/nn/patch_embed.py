"""Patch embedding: images to patch tokens."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.nn.fused_forward import is_plain
from mambar.nn.tracing import leaf_module

logger = logging.getLogger(__name__)


class PatchEmbed(nn.Module):
    """Linear embedding of non-overlapping patches, in row order.

    Takes any height and width of at least one patch. Pixels beyond the last full patch are cropped; the first such
    image logs a warning (none in traced code).
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self._warned = False

    def grid(self, images: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
        """The number of patch rows and columns."""
        height, width = images.shape[-2:]
        return height // self.patch_size, width // self.patch_size

    @leaf_module
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        """The patch tokens; raises `InputError` for a wrong shape or an image smaller than a patch."""
        self._check(images)
        if images.is_cuda and self._is_plain_conv():
            return self._matmul(images)
        return self.proj(images).flatten(2).transpose(1, 2)

    def _is_plain_conv(self) -> bool:
        """True if `proj` is the convolution that `__init__` made, whatever its weights, without hooks."""
        proj, size = self.proj, (self.patch_size, self.patch_size)
        if not is_plain(proj, nn.Conv2d):
            return False
        fixed = (proj.kernel_size, proj.stride, proj.padding, proj.dilation, proj.groups)
        return fixed == (size, size, (0, 0), (1, 1), 1)

    def _matmul(self, images: Tensor) -> Tensor:
        """The convolution as one matrix product. cuDNN would convert the layout of images and weights before it."""
        size, (rows, cols) = self.patch_size, self.grid(images)
        images = images[..., : rows * size, : cols * size]
        patches = images.unflatten(-1, (cols, size)).unflatten(-3, (rows, size)).permute(0, 2, 4, 1, 3, 5)
        return nn.functional.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise InputError(f"images of shape {tuple(images.shape)} are not (batch, {self.in_chans}, height, width).")
        if torch.compiler.is_compiling():
            return
        height, width = images.shape[-2:]
        rows, cols = self.grid(images)
        if rows < 1 or cols < 1:
            raise InputError(
                f"An image of {height}x{width} pixels holds no patch of {self.patch_size}x{self.patch_size}; "
                "give a larger image or build the model with a smaller patch_size."
            )
        if (rows * self.patch_size, cols * self.patch_size) != (height, width) and not self._warned:
            self._warned = True
            logger.warning(
                "Images of %dx%d pixels are cropped to %dx%d, a multiple of patch_size=%d.",
                *(height, width, rows * self.patch_size, cols * self.patch_size, self.patch_size),
            )
