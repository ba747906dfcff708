"""Norms of many images in bounded memory: distributions of all, maps of a fixed random sample."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.analysis.measure.distributions import DistributionCounter, NormDistribution
from mambar.analysis.measure.norms import eval_mode, l2_norms, layer_indices
from mambar.data import key
from mambar.data.loading.to_device import to_device
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor

logger = logging.getLogger("mambar.analysis.measure.collect")

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class CollectedNorms:
    """What `collect_norms` found.

    layers: counted from 0. patches, registers: one distribution a layer, over all `num_images`.
    maps, register_norms: the norms of the images numbered `kept`, ascending; mean_map: the mean over all images.
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


def model_device(model: TokenModel) -> torch.device:
    """Where the model computes: the device of its first parameter, the CPU where it has none."""
    module: object = model
    if isinstance(module, nn.Module):
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")


def split_batches(
    images: Float[Tensor, "images channels height width"], batch_size: int = 32
) -> Iterator[Float[Tensor, "_ channels height width"]]:
    """The images, `batch_size` at a time."""
    yield from images.split(batch_size)


def collect_norms(
    model: TokenModel,
    batches: Iterable[Float[Tensor, "_ channels height width"]],
    layers: Sequence[int] | None = None,
    *,
    tensor: TokenTensor = "residual",
    keep: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> CollectedNorms:
    """The norms of all images of the batches, which must have one size.

    Distributions count every token of every image; the maps of at most `keep` images are held, drawn by `seed`
    and the image's number alone, so another batch size keeps the same ones. Memory does not grow with the number
    of images beyond that. `progress` is called with the number of images done.
    """
    indices = layer_indices(model, layers)
    device = model_device(model)
    patch_counter, register_counter = DistributionCounter(len(indices)), DistributionCounter(len(indices))
    sample = _Sample(keep, seed)
    total, done = None, 0
    with eval_mode(model):
        for images in batches:
            found = model.tokens(to_device(images, device), indices, tensor=tensor)
            rows, cols = found[0].grid
            maps = torch.stack([l2_norms(tokens.patches) for tokens in found]).unflatten(-1, (rows, cols))
            registers = torch.stack([l2_norms(tokens.registers) for tokens in found])
            if total is not None and total.shape[1:] != maps.shape[2:]:
                raise InputError(
                    f"One batch has a grid of {rows} × {cols} patches, another {total.shape[1]} × {total.shape[2]}; "
                    "bring all images to one size first."
                )
            patch_counter.add(maps)
            register_counter.add(registers)
            summed = maps.double().sum(1)
            total = summed if total is None else total + summed
            sample.add(maps, registers)
            done += maps.shape[1]
            if progress is not None:
                progress(done)
    if total is None:
        raise InputError("There are no images to look at; the batches are empty.")
    kept, maps, registers = sample.result()
    return CollectedNorms(
        layers=tuple(indices),
        tensor=tensor,
        num_images=done,
        patches=patch_counter.result(),
        registers=register_counter.result(),
        kept=kept,
        maps=maps,
        register_norms=registers,
        mean_map=(total / done).cpu(),
    )


class _Sample:
    """Holds the images with the smallest keys: a uniform sample that depends on seed and number only."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.seen = size, seed, 0
        self.held: list[tuple[int, int, Tensor, Tensor]] = []

    def add(
        self,
        maps: Float[Tensor, "layers batch rows cols"],
        registers: Float[Tensor, "layers batch registers"],
    ) -> None:
        limit = self.held[self.size - 1][0] if len(self.held) >= self.size > 0 else None
        keys = [key(self.seed, "keep", self.seen + index) for index in range(maps.shape[1])]
        chosen = [index for index, value in enumerate(keys) if limit is None or value < limit]
        if chosen and self.size:
            at = torch.tensor(chosen, device=maps.device)
            some, others = maps[:, at].cpu(), registers[:, at].cpu()
            for place, index in enumerate(chosen):
                self.held.append((keys[index], self.seen + index, some[:, place].clone(), others[:, place].clone()))
            self.held = sorted(self.held, key=lambda entry: entry[0])[: self.size]
        self.seen += maps.shape[1]
        self.empty = maps[:, :0], registers[:, :0]

    def result(self) -> tuple[tuple[int, ...], Tensor, Tensor]:
        if not self.held:
            maps, registers = self.empty
            return (), maps.cpu(), registers.cpu()
        ordered = sorted(self.held, key=lambda entry: entry[1])
        maps = torch.stack([entry[2] for entry in ordered], dim=1)
        return (
            tuple(entry[1] for entry in ordered),
            maps,
            torch.stack([entry[3] for entry in ordered], dim=1),
        )
