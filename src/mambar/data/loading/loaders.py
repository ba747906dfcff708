"""Batches in a fixed order, made by any number of worker processes for any number of training processes.

A global step is cut into `shards` micro-batches. Shard s of step t owns the positions t·B + s, t·B + s +
shards and so on of the epoch's order, whoever computes it: the processes of a run take shards round robin.
Hence neither the number of workers nor the number of processes changes a bit of the data, and a resumed run
starts at any step without state.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.samplers import epoch_order, steps_per_epoch
from mambar.data.loading.to_device import to_device
from mambar.data.loading.workers import WorkerPool
from mambar.errors import DataError, ImageError, InputError


@dataclass(frozen=True)
class Batch:
    """Some images together, with what identifies them: the dataset's indices, the step and the shard."""

    images: Shaped[Tensor, "batch channels height width"]
    labels: Int64[Tensor, "batch"]
    indices: Int64[Tensor, "batch"]
    step: int
    shard: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; a pinned one is copied without waiting."""
        return replace(
            self,
            images=to_device(self.images, device),
            labels=to_device(self.labels, device),
            indices=to_device(self.indices, device),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where a GPU copies faster."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            indices=self.indices.pin_memory(),
        )


def training_batches(
    dataset: ImageDataset,
    transform: Callable[[Tensor, int], Tensor],
    *,
    seed: int,
    epoch: int,
    first_step: int = 0,
    batch_size: int,
    shards: int = 1,
    my_shards: Sequence[int] | None = None,
    repeats: int = 1,
    workers: int = 0,
    pinned: bool = False,
) -> Iterator[Batch]:
    """The micro-batches of an epoch from `first_step` on: by step, within a step in the order of `my_shards`.

    `batch_size` counts all shards together; `my_shards` are those of this process (None: all).
    `transform(image, key)` gets key(seed, "augment", epoch, index, repeat). The last samples that do not fill
    a global batch are left out. `pinned` has an effect only where CUDA runs.
    """
    if shards < 1 or batch_size < shards or batch_size % shards:
        raise InputError(f"batch_size={batch_size} cannot be cut into shards={shards} equal parts; use a multiple.")
    mine = range(shards) if my_shards is None else my_shards
    if any(not 0 <= shard < shards for shard in mine):
        raise InputError(f"my_shards={list(mine)} are not all below shards={shards}.")
    steps = steps_per_epoch(len(dataset), batch_size=batch_size, repeats=repeats)
    if not steps:
        raise InputError(
            f"batch_size={batch_size} exceeds the {len(dataset)} images of {dataset.name}; use a smaller one."
        )
    if not 0 <= first_step <= steps:
        raise InputError(f"first_step={first_step} is not one of the epoch's {steps} steps.")
    order = epoch_order(len(dataset), seed=seed, epoch=epoch, repeats=repeats)
    work = _Training(dataset, transform, order, seed, epoch, repeats, batch_size, shards)
    tasks = [(step, shard) for step in range(first_step, steps) for shard in mine]
    return _run(work, tasks, workers=workers, pinned=pinned)


def evaluation_batches(
    dataset: ImageDataset,
    transform: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pinned: bool = False,
) -> Iterator[Batch]:
    """The batches rank, rank + world, … of the samples in order: over all ranks every sample once, none added.

    A batch holds the same samples whatever the number of ranks, so that its last bits are the same too; ranks may
    differ by one batch. An unreadable image is left out (its dataset has counted and named it), so the sum of the
    batches' lengths is the number evaluated. `step` numbers the batches over all ranks, `shard` is the rank.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is not a count; use 1 or more.")
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} is not below world={world}.")
    work = _Evaluation(dataset, transform, batch_size)
    tasks = [(step, rank) for step in range(rank, -(-len(dataset) // batch_size), world)]
    return (batch for batch in _run(work, tasks, workers=workers, pinned=pinned) if len(batch))


@dataclass(frozen=True)
class _Training:
    dataset: ImageDataset
    transform: Callable[[Tensor, int], Tensor]
    order: np.ndarray
    seed: int
    epoch: int
    repeats: int
    batch_size: int
    shards: int

    def __call__(self, task: tuple[int, int]) -> Batch:
        step, shard = task
        positions = range(step * self.batch_size + shard, (step + 1) * self.batch_size, self.shards)
        images, labels, indices = [], [], []
        for position in positions:
            index = int(self.order[position])
            sample = self.dataset[index]
            repeat = position % self.repeats
            images.append(self.transform(sample.image, key(self.seed, "augment", self.epoch, index, repeat)))
            labels.append(sample.label)
            indices.append(index)
        return _stack(images, labels, indices, step, shard)


@dataclass(frozen=True)
class _Evaluation:
    dataset: ImageDataset
    transform: Callable[[Tensor], Tensor]
    batch_size: int

    def __call__(self, task: tuple[int, int]) -> Batch:
        step, shard = task
        images, labels, indices = [], [], []
        for index in range(len(self.dataset))[step * self.batch_size : (step + 1) * self.batch_size]:
            try:
                sample = self.dataset[index]
            except ImageError:
                continue
            images.append(self.transform(sample.image))
            labels.append(sample.label)
            indices.append(index)
        return _stack(images, labels, indices, step, shard)


def _stack(images: list[Tensor], labels: list[int], indices: list[int], step: int, shard: int) -> Batch:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"images of a batch differ in shape: {sorted(shapes)}; the transform must give one size.")
    stacked = torch.stack(images) if images else torch.empty(0, 0, 0, 0)
    return Batch(
        stacked,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(indices, dtype=torch.int64),
        step,
        shard,
    )


def _run(
    work: Callable[[tuple[int, int]], Batch], tasks: list[tuple[int, int]], *, workers: int, pinned: bool
) -> Iterator[Batch]:
    if workers < 0:
        raise InputError(f"workers={workers} is not a count; use 0 (this process) or more.")
    pinned = pinned and torch.cuda.is_available()
    if not workers or not tasks:
        return _alone(work, tasks, pinned)
    batches = _with_workers(work, tasks, min(workers, len(tasks)))
    return _pinned_ahead(batches) if pinned else batches


def _alone(
    work: Callable[[tuple[int, int]], Batch], tasks: list[tuple[int, int]], pinned: bool
) -> Generator[Batch, None, None]:
    for task in tasks:
        yield work(task).pin_memory() if pinned else work(task)


def _with_workers(
    work: Callable[[tuple[int, int]], Batch], tasks: list[tuple[int, int]], workers: int
) -> Generator[Batch, None, None]:
    pool = WorkerPool(work, workers)
    try:
        yield from pool.results(tasks)
    finally:
        pool.close()


def _pinned_ahead(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The batches in page-locked memory; a thread copies the next one there while this one is worked on."""

    def fetch() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else batch.pin_memory()

    # The first in this thread: it starts the processes.
    batch = fetch()
    try:
        # The thread's GPU is this process's own, not the first of the machine.
        own = (torch.cuda.current_device(),)
        with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=own) as thread:
            while batch is not None:
                coming = thread.submit(fetch)
                yield batch
                batch = coming.result()
    finally:
        batches.close()
