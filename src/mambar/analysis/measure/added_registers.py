"""Test-time registers: tokens added to a trained model without training, with activations moved to them.

The method for ViTs is "Vision Transformers Don't Need Trained Registers" (Jiang et al., 2025): a few neurons of the
MLPs cause the outliers, and moving their largest activation to an added token removes the outliers from the image.
A vision Mamba has no MLP; here the neurons are the inner channels of the mixer before its output projection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.analysis.measure.activations import layer_indices
from mambar.errors import InputError
from mambar.models.protocol import Images, Layers, TokenTensor
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import MambaBlock, Tokens
from mambar.nn.placement import register_positions

# Initial value of an added register, from the patches and the trained registers.
FILLS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "zero": lambda patches, registers: torch.zeros_like(patches[:, :1]),
    "mean": lambda patches, registers: patches.mean(1, keepdim=True),
    "copy": lambda patches, registers: registers[:, :1],
}


@dataclass(frozen=True, kw_only=True)
class RegisterNeurons:
    """Inner channels with the largest effect on outliers: (layer, channel) pairs in descending order of score."""

    channels: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]

    def of_layer(self, layer: int) -> list[int]:
        """The channels of one layer."""
        return [channel for own, channel in self.channels if own == layer]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Positions in the extended sequence: added registers, all other tokens, and the patches among them."""

    added: tuple[int, ...]
    own: tuple[int, ...]
    patches: tuple[int, ...]


class TestTimeRegisters(nn.Module):
    """A trained `VisionMamba`, its weights unchanged, with `num_registers` more tokens in its sequence.

    The added registers are placed by `placement` in the sequence of patches and trained registers. Their initial value
    is `fill`: zero, the mean of the image's patches, or a copy of the first trained register. The head does not read
    them. With `neurons`, the patches' activations in those channels are set to zero, and the one of largest magnitude
    is written to every added register. In `tokens`, added registers follow the trained ones.
    """

    def __init__(
        self,
        model: VisionMamba,
        num_registers: int = 1,
        *,
        placement: str = "spread",
        fill: str = "zero",
        neurons: RegisterNeurons | None = None,
    ) -> None:
        super().__init__()
        if num_registers < 1:
            raise InputError(f"num_registers={num_registers} adds nothing; use 1 or more.")
        if fill not in FILLS:
            raise InputError(f"fill={fill!r} is not known; choose one of {', '.join(FILLS)}.")
        if fill == "copy" and not model.config.num_registers:
            raise InputError("fill='copy' needs a trained register; this model has none. Choose zero or mean.")
        self.model = model
        self.num_layers, self.patch_size, self.embed_dim = model.num_layers, model.patch_size, model.embed_dim
        self.num_registers, self.placement, self.fill, self.neurons = num_registers, placement, fill, neurons

    def tokens(self, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual") -> list[Tokens]:
        """The tokens of the given layers; added registers follow the trained ones."""
        wanted = layer_indices(self, layers)
        sequence, grid = self.model.embed(images)
        layout = self._layout(sequence.shape[1], grid)
        found: dict[int, Tokens] = {}
        for layer, added, stream in self._through(sequence, grid, layout):
            if layer in wanted:
                seen = added if tensor == "mixer" else self.model.norm(stream) if tensor == "normed" else stream
                split = self.model.registers.split(seen[:, list(layout.own)], grid)
                registers = torch.cat([split.registers, seen[:, list(layout.added)]], dim=1)
                found[layer] = Tokens(patches=split.patches, registers=registers, grid=grid)
        return [found[layer] for layer in wanted]

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        stream, grid = self.model.embed(images)
        layout = self._layout(stream.shape[1], grid)
        for _, _, after in self._through(stream, grid, layout):
            stream = after
        return self.model.forward_head(self.model.norm(stream[:, list(layout.own)]), grid=grid)

    def _layout(self, length: int, grid: tuple[int, int]) -> _Layout:
        added = register_positions(self.placement, length, self.num_registers)
        own = [place for place in range(length + self.num_registers) if place not in added]
        trained = self.model.registers.positions(grid[0] * grid[1], grid)
        patches = [place for index, place in enumerate(own) if index not in trained]
        return _Layout(added=added, own=tuple(own), patches=tuple(patches))

    def _through(
        self, sequence: Tensor, grid: tuple[int, int], layout: _Layout
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each layer, its number, the mixer output and the residual stream, in the extended sequence."""
        split = self.model.registers.split(sequence, grid)
        register = FILLS[self.fill](split.patches, split.registers)
        x = sequence.new_empty(len(sequence), len(layout.own) + len(layout.added), self.embed_dim)
        x[:, list(layout.own)] = sequence
        x[:, list(layout.added)] = register
        positions = sorted(set(range(x.shape[1])) - set(layout.patches))
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, MambaBlock)
            channels = self.neurons.of_layer(layer) if self.neurons else []
            with _moving(block, channels, layout):
                added = block.branch(x, grid, positions)
            x = x + added
            yield layer, added, x


@contextmanager
def _moving(block: MambaBlock, channels: list[int], layout: _Layout) -> Iterator[None]:
    """Moves activations before the output projection from the patches to the added registers."""

    def move(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        inner = inputs[0].clone()  # (B, L, E)
        patches, added = (
            torch.tensor(places, device=inner.device)[:, None] for places in (layout.patches, layout.added)
        )
        chosen = inner[:, patches, channels]  # (B, M, channels)
        largest = chosen.gather(1, chosen.abs().argmax(1, keepdim=True))  # (B, 1, channels)
        inner[:, patches, channels] = 0
        inner[:, added, channels] = largest
        return (inner,)

    if not channels:
        yield
        return
    handle = block.mixer.out_proj.register_forward_pre_hook(move)
    try:
        yield
    finally:
        handle.remove()
