"""Drop path by key: the masks of a shard's whole batch are drawn from (seed, step, shard), never from a global
generator, so they do not depend on the process, on the device or on how the batch is cut into micro-batches.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.keys import torch_generator
from mambar.nn.block import DropPath


class KeyedDropPath:
    """Gives every `DropPath` of a model its masks; `draw` for a batch, then `window` for a part of it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.layers = [module for module in model.modules() if isinstance(module, DropPath) and module.rate > 0]
        self.masks: list[Tensor] = []
        self.parts: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            # An instance attribute in place of the method: the class and other models stay as they are.
            layer.keep = _Lookup(self, number)  # pyright: ignore[reportAttributeAccessIssue]

    def draw(self, key: int, images: int) -> None:
        """The masks of a batch of so many images."""
        generator = torch_generator(key)
        drawn = torch.rand(len(self.layers), images, generator=generator)  # (layers, B)
        self.masks = [
            (row >= layer.rate).float().view(-1, 1, 1).to(self.device)
            for row, layer in zip(drawn, self.layers, strict=True)
        ]
        self.window(0, images)

    def window(self, start: int, stop: int) -> None:
        """The images that the next forward pass sees."""
        self.parts = [mask[start:stop] for mask in self.masks]


class _Lookup:
    def __init__(self, source: KeyedDropPath, number: int) -> None:
        self.source = source
        self.number = number

    def __call__(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        return self.source.parts[self.number]
