"""Drop path by key: the masks of a shard's whole batch are drawn from (seed, step, shard), never from a global
generator, so they do not depend on the process, on the device or on how the batch is cut into micro-batches.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.keys import torch_generator
from mambar.data.loading.to_device import to_device
from mambar.nn.block import DropPath


class KeyedDropPath:
    """Gives every `DropPath` of a model its masks; `draw` for a batch, then `window` for a part of it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.layers = [module for module in model.modules() if isinstance(module, DropPath) and module.drop_prob > 0]
        self.rates = torch.tensor([layer.drop_prob for layer in self.layers])
        # (layers, B, 1, 1) of the whole batch, and of the part that the next forward pass sees.
        self.masks = torch.ones(0, 0, 1, 1)
        self.part = self.masks
        for number, layer in enumerate(self.layers):
            # An instance attribute in place of the method: the class and other models stay as they are.
            layer.keep = _Lookup(self, number)  # pyright: ignore[reportAttributeAccessIssue]

    def draw(self, key: int, images: int) -> None:
        """The masks of a batch of so many images."""
        if not self.layers:
            return
        drawn = torch.rand(len(self.layers), images, generator=torch_generator(key))
        kept = (drawn >= self.rates[:, None]).float()[:, :, None, None]
        self.masks = to_device(kept, self.device)
        self.window(0, images)

    def window(self, start: int, stop: int) -> None:
        """The images that the next forward pass sees."""
        self.part = self.masks[:, start:stop]


class _Lookup:
    def __init__(self, source: KeyedDropPath, number: int) -> None:
        self.source = source
        self.number = number

    def __call__(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        return self.source.part[self.number]
