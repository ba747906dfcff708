"""Norms of many images in bounded memory: distributions over all images, maps of a random sample."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.analysis.measure.activations import capture_activations, layer_indices
from mambar.analysis.measure.distributions import DistributionCounter, NormDistribution
from mambar.analysis.measure.norms import l2_norms, norm_map
from mambar.data import key
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor
from mambar.nn import Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class CollectedNorms:
    """Token norms of a set of images.

    Attributes:
        layers: Layer numbers, from 0.
        tensor: The tensor whose norms were taken.
        num_images: Number of images.
        patches: Distribution of image-token norms of each layer, over all images.
        registers: Distribution of register norms of each layer, over all images.
        kept: Numbers of the sampled images, ascending.
        maps: Norm maps of the sampled images.
        register_norms: Register norms of the sampled images.
        mean_map: Mean norm map over all images.
    """

    layers: tuple[int, ...]
    tensor: TokenTensor
    num_images: int
    patches: list[NormDistribution]
    registers: list[NormDistribution]
    kept: tuple[int, ...]
    maps: Float[Tensor, "layers images rows cols"]
    register_norms: Float[Tensor, "layers images registers"]
    mean_map: Float[Tensor, "layers rows cols"]


def collect_norms(
    model: TokenModel,
    batches: Iterable[Float[Tensor, "_ channels height width"]],
    layers: Sequence[int] | None = None,
    *,
    tensor: TokenTensor = "residual",
    keep: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CollectedNorms:
    """The norms of all images of the batches, which must have one size; see `NormCollector`."""
    collector = NormCollector(layer_indices(model, layers), tensor=tensor, keep=keep, seed=seed)
    for images in batches:
        collector.add(capture_activations(model, images, {tensor: layers})[tensor])
        if progress is not None:
            progress(collector.num_images)
    return collector.result()


class NormCollector:
    """Adds up the norms of batch after batch.

    Distributions count every token of every image. The maps of at most `keep` images are held; `seed` and the image's
    number alone select them, so that any batch size keeps the same images. Memory is bounded by `keep`.
    """

    def __init__(self, layers: Sequence[int], *, tensor: TokenTensor, keep: int, seed: int) -> None:
        self.layers, self.num_images = tuple(layers), 0
        self.tensor: TokenTensor = tensor
        self._patches, self._registers = DistributionCounter(len(layers)), DistributionCounter(len(layers))
        self._sample = ImageSample(keep, seed)
        self._total: Tensor | None = None

    def add(self, tokens: Sequence[Tokens]) -> None:
        """Adds one batch: the tokens of each layer."""
        maps = torch.stack([norm_map(each) for each in tokens], 1)  # (B, layers, rows, cols)
        registers = torch.stack([l2_norms(each.registers) for each in tokens], 1)
        if self._total is not None and self._total.shape[1:] != maps.shape[2:]:
            (rows, cols), (first_rows, first_cols) = tokens[0].grid, self._total.shape[1:]
            raise InputError(
                f"One batch has a grid of {rows} × {cols} patches, another {first_rows} × {first_cols}; "
                "resize all images to one size first."
            )
        self._patches.add(maps.transpose(0, 1))
        self._registers.add(registers.transpose(0, 1))
        total = maps.double().sum(0)
        self._total = total if self._total is None else self._total + total
        self._sample.add(maps, registers)
        self.num_images += len(maps)

    def result(self) -> CollectedNorms:
        """The norms of all batches so far; raises `InputError` if there was none."""
        if self._total is None:
            raise InputError("There are no images to measure; the batches are empty.")
        kept, (maps, registers) = self._sample.result()
        return CollectedNorms(
            layers=self.layers,
            tensor=self.tensor,
            num_images=self.num_images,
            patches=self._patches.result(),
            registers=self._registers.result(),
            kept=kept,
            maps=maps.transpose(0, 1).contiguous(),
            register_norms=registers.transpose(0, 1).contiguous(),
            mean_map=(self._total / self.num_images).cpu(),
        )


class ImageSample:
    """Arrays of at most `size` images: a uniform sample that depends only on `seed` and the images' numbers."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.num_seen = size, seed, 0
        # (key, number of the image, its arrays); the images with the smallest keys are held.
        self._held: list[tuple[int, int, list[Tensor]]] = []
        self._empty: list[Tensor] = []

    def add(self, *arrays: Float[Tensor, "batch ..."]) -> None:
        """Adds one batch of every array."""
        limit = self._held[self.size - 1][0] if len(self._held) >= self.size > 0 else None
        keys = [key(self.seed, "keep", self.num_seen + index) for index in range(len(arrays[0]))]
        chosen = [index for index, value in enumerate(keys) if limit is None or value < limit]
        if chosen and self.size:
            selected = [array[torch.tensor(chosen, device=array.device)].cpu() for array in arrays]
            for place, index in enumerate(chosen):
                copies = [array[place].clone() for array in selected]
                self._held.append((keys[index], self.num_seen + index, copies))
            self._held = sorted(self._held, key=lambda entry: entry[0])[: self.size]
        self.num_seen += len(arrays[0])
        self._empty = [array[:0].cpu() for array in arrays]

    def result(self) -> tuple[tuple[int, ...], list[Tensor]]:
        """The numbers of the held images, ascending, and their arrays."""
        if not self._held:
            return (), self._empty
        ordered = sorted(self._held, key=lambda entry: entry[1])
        arrays = zip(*(entry[2] for entry in ordered), strict=True)
        return tuple(entry[1] for entry in ordered), [torch.stack(images) for images in arrays]
