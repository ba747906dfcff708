"""Drop path with masks drawn from (seed, step, shard) for the whole batch of a shard, not from a global generator.

The masks do not depend on the rank, on the device or on the number of micro-batches.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.keys import torch_generator
from mambar.data.loading.to_device import to_device
from mambar.nn.block import DropPath


class KeyedDropPath:
    """Sets the masks of every `DropPath` of a model: `draw` for a batch, then `window` for a micro-batch."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.layers = [module for module in model.modules() if isinstance(module, DropPath) and module.drop_prob > 0]
        self.rates = torch.tensor([layer.drop_prob for layer in self.layers])
        # (layers, B, 1, 1) of the whole batch, and of the next micro-batch.
        self.masks = torch.ones(0, 0, 1, 1)
        self.part = self.masks
        for number, layer in enumerate(self.layers):
            # An instance attribute overrides the method for this model only.
            layer.keep = _Lookup(self, number)  # pyright: ignore[reportAttributeAccessIssue]

    def draw(self, key: int, num_images: int) -> None:
        """Draws the masks of a batch."""
        if not self.layers:
            return
        drawn = torch.rand(len(self.layers), num_images, generator=torch_generator(key))
        kept = (drawn >= self.rates[:, None]).float()[:, :, None, None]
        self.masks = to_device(kept, self.device)
        self.window(0, num_images)

    def window(self, start: int, stop: int) -> None:
        """Selects the images of the next forward pass."""
        self.part = self.masks[:, start:stop]


class _Lookup:
    def __init__(self, source: KeyedDropPath, number: int) -> None:
        self.source = source
        self.number = number

    def __call__(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        return self.source.part[self.number]
