"""Batches in a fixed order, made by any number of worker processes for any number of training processes.

A global step is cut into `shards` micro-batches. Shard s of step t owns the positions t·B + s, t·B + s +
shards and so on of the epoch's order, whoever computes it: the processes of a run take shards round robin.
Hence neither the number of workers nor the number of processes changes a bit of the data, and a resumed run
starts at any step without state.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mambar.data.dataset import ImageDataset, Sample
from mambar.data.keys import key
from mambar.data.loading.samplers import epoch_order, steps_per_epoch
from mambar.data.loading.to_device import to_device
from mambar.data.loading.workers import WorkerPool
from mambar.errors import DataError, ImageError, InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Named fields of some samples: `batch["images"]`, `batch["labels"]`, … `len(batch)` is the number of samples.

    Attributes:
        fields: Tensors whose first dimension is the batch, or lists with one entry per sample.
        step: Step within the epoch; in evaluation the number of the batch over all ranks.
        shard: Shard of the step; in evaluation the rank.
        key: Key for random numbers of a task (see `mambar.data.keys`); the same on any number of processes.
    """

    fields: Mapping[str, Any]
    step: int = 0
    shard: int = 0
    key: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.fields.values()), ()))

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def keys(self) -> Iterable[str]:
        """The names of the fields."""
        return self.fields.keys()

    def replace(self, **fields: Any) -> "Batch":
        """A copy with some fields added or replaced."""
        return replace(self, fields={**self.fields, **fields})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """A copy with `function` applied to every tensor, also inside lists."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            return [apply(each) for each in value] if isinstance(value, list) else value

        return replace(self, fields={name: apply(value) for name, value in self.fields.items()})

    def slice(self, start: int, stop: int) -> "Batch":
        """The samples from `start` to before `stop`."""
        return replace(self, fields={name: value[start:stop] for name, value in self.fields.items()})

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy is asynchronous."""
        return self.map(lambda tensor: to_device(tensor, device))

    def cast(self, dtype: torch.dtype) -> "Batch":
        """The batch with its floating-point tensors in `dtype`."""
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return self.map(Tensor.pin_memory)

    @property
    def images(self) -> Shaped[Tensor, "batch channels height width"]:
        """The field "images"."""
        return self.fields["images"]

    @property
    def labels(self) -> Int64[Tensor, "batch"]:
        """The field "labels"."""
        return self.fields["labels"]

    @property
    def indices(self) -> Int64[Tensor, "batch"]:
        """The samples' indices in the dataset."""
        return self.fields["indices"]


@runtime_checkable
class SampleTransform(Protocol):
    """A transform that takes a whole sample (image, mask, targets) and returns named fields."""

    def transform_sample(self, sample: Sample, key: int) -> Mapping[str, Any]:
        """The fields of the batch; `key` seeds all randomness (0 in evaluation)."""
        ...


# An image (and its key in training) → one image, or several fields such as two views.
Transform = Callable[..., Tensor | Mapping[str, Any]]


def training_batches(
    dataset: ImageDataset,
    transform: Transform | SampleTransform,
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
    transform: Transform | SampleTransform,
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
    transform: Transform | SampleTransform
    order: np.ndarray
    seed: int
    epoch: int
    repeats: int
    batch_size: int
    shards: int

    def __call__(self, task: tuple[int, int]) -> Batch:
        step, shard = task
        positions = range(step * self.batch_size + shard, (step + 1) * self.batch_size, self.shards)
        samples = []
        for position in positions:
            index = int(self.order[position])
            sample = self.dataset[index]
            repeat = position % self.repeats
            drawn = key(self.seed, "augment", self.epoch, index, repeat)
            samples.append(_fields(self.transform, sample, index, drawn, (drawn,)))
        return collate(samples, step, shard)


@dataclass(frozen=True)
class _Evaluation:
    dataset: ImageDataset
    transform: Transform | SampleTransform
    batch_size: int

    def __call__(self, task: tuple[int, int]) -> Batch:
        step, shard = task
        samples = []
        for index in range(len(self.dataset))[step * self.batch_size : (step + 1) * self.batch_size]:
            try:
                sample = self.dataset[index]
            except ImageError:
                continue
            samples.append(_fields(self.transform, sample, index, 0, ()))
        return collate(samples, step, shard)


def _fields(
    transform: Transform | SampleTransform, sample: Sample, index: int, key: int, arguments: tuple[int, ...]
) -> dict[str, Any]:
    """The fields of one sample: those of the transform, and its label, further targets and index."""
    if isinstance(transform, SampleTransform):
        made: Any = transform.transform_sample(sample, key)
    else:
        made = transform(sample.image, *arguments)
    fields = dict(made) if isinstance(made, Mapping) else {"images": made}
    return {**fields, "labels": sample.label, **sample.targets, **fields, "indices": index}


def collate(samples: Sequence[Mapping[str, Any]], step: int = 0, shard: int = 0) -> Batch:
    """A batch of samples: tensors of one shape are stacked, whole numbers become int64; all else stays a list.

    Raises DataError if "images" differ in shape.
    """
    if not samples:
        empty = torch.empty(0, dtype=torch.int64)
        return Batch({"images": torch.empty(0, 0, 0, 0), "labels": empty, "indices": empty}, step, shard)
    fields: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if all(isinstance(value, Tensor) for value in values):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1 and name == "images":
                raise DataError(
                    f"images of a batch differ in shape: {sorted(shapes)}; the transform must give one size."
                )
            fields[name] = torch.stack(values) if len(shapes) == 1 else values
        elif all(isinstance(value, int) for value in values):
            fields[name] = torch.tensor(values, dtype=torch.int64)
        else:
            fields[name] = values
    return Batch(fields, step, shard)


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
