"""Interventions on outlier tokens: norms clamped or tokens exchanged among images, and controls on random tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mambar.analysis.measure.norms import l2_norms
from mambar.errors import InputError
from mambar.models.protocol import Images, Layers, TokenTensor, layer_indices
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import Tokens
from mambar.nn.fused_forward import join_sequence

Patches = Float[Tensor, "batch patches dim"]
PatchMask = Bool[Tensor, "batch patches"]


def _clamped(patches: Patches, chosen: PatchMask, factors: Float[Tensor, "batch patches"]) -> Patches:
    return torch.where(chosen[..., None], patches * factors[..., None].to(patches.dtype), patches)


def _exchanged(patches: Patches, chosen: PatchMask, factors: Float[Tensor, "batch patches"]) -> Patches:
    """Each chosen token replaced by one of another image; kept where the batch has too few of other images."""
    image, place = chosen.nonzero(as_tuple=True)
    if not len(image):
        return patches
    # They are in the order of the images: a shift by the largest number of one image reaches another image.
    donor = (torch.arange(len(image), device=image.device) + chosen.sum(1).max()) % len(image)
    other = image[donor] != image
    changed = patches.clone()
    changed[image[other], place[other]] = patches[image[donor], place[donor]][other]
    return changed


# What is done to the chosen tokens of a batch.
CHANGES: Final[dict[str, Callable[[Patches, PatchMask, Tensor], Patches]]] = {
    "clamped": _clamped,
    "exchanged": _exchanged,
}


class ChangedOutliers(nn.Module):
    """A trained `VisionMamba`, its weights unchanged, whose outlier patches are changed after each of its blocks.

    An outlier has a norm above the `thresholds` of its layer, in the changed stream; an infinite threshold leaves a
    layer as it is. `change="clamped"` scales its vector to the threshold. `change="exchanged"` replaces it by an
    outlier of another image of the batch, so batches must be shuffled. `random=True` is the control: in each image as
    many patches that are no outliers are scaled by the factors that the outliers would get, or exchanged among images.
    They are drawn by `seed`, in one order for all layers, because outliers of one layer tend to be outliers of the
    next. Registers are not changed.
    """

    def __init__(
        self, model: VisionMamba, thresholds: Sequence[float], change: str, *, random: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(model, VisionMamba):
            raise InputError(f"Tokens of Mamba-R and Vim models can be changed; got {type(model).__name__}.")
        if change not in CHANGES:
            raise InputError(f"change={change!r} is not known; choose one of {', '.join(CHANGES)}.")
        if len(thresholds) != model.num_layers:
            raise InputError(f"{len(thresholds)} thresholds for {model.num_layers} layers; give one for each layer.")
        self.model = model
        self.num_layers, self.patch_size, self.embed_dim = model.num_layers, model.patch_size, model.embed_dim
        self.thresholds, self.change, self.random, self.seed = tuple(thresholds), change, random, seed

    def tokens(self, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual") -> list[Tokens]:
        """The tokens of the given layers after the change; the tensor is residual or normed."""
        if tensor == "mixer":
            raise InputError("tensor='mixer' is not changed; choose residual or normed.")
        wanted = layer_indices(self, layers)
        found: dict[int, Tokens] = {}
        for layer, stream, grid in self._through(images):
            if layer in wanted:
                seen = self.model.norm(stream) if tensor == "normed" else stream
                found[layer] = self.model.registers.split(seen, grid)
        return [found[layer] for layer in wanted]

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        *_, (_, stream, grid) = self._through(images)
        return self.model.forward_head(self.model.norm(stream), grid=grid)

    def _through(self, images: Images) -> Iterator[tuple[int, Float[Tensor, "batch length dim"], tuple[int, int]]]:
        """For each layer, its number, the changed residual stream, and the grid."""
        stream, grid = self.model.embed(images)
        # The same tokens in every layer, and in every call on the same images.
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(len(images), grid[0] * grid[1], generator=generator).to(stream.device)
        for layer, block in enumerate(self.model.blocks):
            stream = self.model.run_block(block, stream, grid)
            split = self.model.registers.split(stream, grid)
            patches = self._changed(split.patches, self.thresholds[layer], drawn)
            positions = self.model.registers.positions(patches.shape[1], grid)
            stream = join_sequence(patches, split.registers, positions)
            yield layer, stream, grid

    def _changed(self, patches: Patches, threshold: float, drawn: Float[Tensor, "batch patches"]) -> Patches:
        norms = l2_norms(patches)
        chosen = norms > threshold
        factors = torch.where(chosen, threshold / norms, 1.0)
        if self.random:
            rank = drawn.masked_fill(chosen, -1.0).argsort(1, descending=True).argsort(1)
            # The factors of the outliers are the smallest.
            factors = factors.sort(1).values.gather(1, rank)
            chosen = (rank < chosen.sum(1, keepdim=True)) & ~chosen
        return CHANGES[self.change](patches, chosen, factors)
