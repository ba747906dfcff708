"""Batches in a fixed order, for any number of data loader workers and any number of ranks.

The batch of a step consists of `shards` shards. Shard s of step t holds the positions t·B + s, t·B + s + shards and so
on of the epoch's order, on whatever rank it is computed; the ranks take shards round robin. The data are therefore
bit-identical for any number of workers and ranks, and a resumed run starts at any step without stored state.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mambar.data.dataset import ImageDataset, Sample
from mambar.data.keys import key
from mambar.data.loading.samplers import epoch_order, steps_per_epoch
from mambar.data.loading.to_device import to_device
from mambar.data.loading.unreadable_images import readable_samples
from mambar.data.loading.workers import Task, WorkerPool
from mambar.deprecated import accept_old_names
from mambar.errors import DataError, InputError


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


@accept_old_names({"my_shards": "local_shards", "workers": "num_workers", "pinned": "pin_memory"})
def training_batches(
    dataset: ImageDataset,
    transform: Transform | SampleTransform,
    *,
    seed: int,
    epoch: int,
    first_step: int = 0,
    num_epochs: int = 1,
    batch_size: int,
    shards: int = 1,
    local_shards: Sequence[int] | None = None,
    repeats: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The micro-batches of an epoch from `first_step` on: by step, within a step in the order of `local_shards`.

    Whole further epochs follow, `num_epochs` in all; the workers stay, and prefetch the next epoch's first batches.
    `batch_size` is that of all shards together; `local_shards` are those of this rank (None: all).
    `transform(image, key)` gets key(seed, "augment", epoch, index, repeat). The last samples that do not fill
    a batch are omitted. `pin_memory` has no effect without CUDA.
    """
    if shards < 1 or batch_size < shards or batch_size % shards:
        raise InputError(f"batch_size={batch_size} cannot be divided into shards={shards} equal parts; use a multiple.")
    local_shards = range(shards) if local_shards is None else local_shards
    if any(not 0 <= shard < shards for shard in local_shards):
        raise InputError(f"local_shards={list(local_shards)} are not all below shards={shards}.")
    steps = steps_per_epoch(len(dataset), batch_size=batch_size, repeats=repeats)
    if not steps:
        raise InputError(
            f"batch_size={batch_size} exceeds the {len(dataset)} images of {dataset.name}; use a smaller one."
        )
    if not 0 <= first_step <= steps:
        raise InputError(f"first_step={first_step} is not one of the epoch's {steps} steps.")
    if num_epochs < 1:
        raise InputError(f"num_epochs={num_epochs} must be at least 1.")
    work = _Training(dataset, transform, seed, repeats, batch_size, shards, local_shards)
    first, last = epoch * steps + first_step, (epoch + num_epochs) * steps
    tasks = range(first * len(local_shards), last * len(local_shards))
    return _run(work, tasks, num_workers=num_workers, pin_memory=pin_memory)


@accept_old_names({"workers": "num_workers", "world": "world_size", "pinned": "pin_memory"})
def evaluation_batches(
    dataset: ImageDataset,
    transform: Transform | SampleTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches rank, rank + world_size, … of the samples in order; over all ranks each sample exactly once.

    A batch has the same samples on any number of ranks, so that results are bit-identical; the number of batches
    per rank differs by at most one. An unreadable image is omitted (the dataset counts and logs it): the sum of the
    batches' lengths is the number of evaluated images. `step` numbers the batches over all ranks, `shard` is the rank.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1.")
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank} must be from 0 to below world_size={world_size}.")
    work = _Evaluation(dataset, transform, batch_size)
    tasks = [(step, rank) for step in range(rank, -(-len(dataset) // batch_size), world_size)]
    return (batch for batch in _run(work, tasks, num_workers=num_workers, pin_memory=pin_memory) if len(batch))


# The batches of an epoch share its order.
_order_of = lru_cache(maxsize=1)(epoch_order)


@dataclass(frozen=True)
class _Training:
    """The micro-batch of a number, which counts the local shards of all steps from the first epoch on."""

    dataset: ImageDataset
    transform: Transform | SampleTransform
    seed: int
    repeats: int
    batch_size: int
    shards: int
    local_shards: Sequence[int]

    def place(self, number: int) -> tuple[int, int, int]:
        """Epoch, step in the epoch and shard."""
        total_steps, index = divmod(number, len(self.local_shards))
        steps = steps_per_epoch(len(self.dataset), batch_size=self.batch_size, repeats=self.repeats)
        return *divmod(total_steps, steps), self.local_shards[index]

    def __call__(self, number: int) -> Batch:
        epoch, step, shard = self.place(number)
        order = _order_of(len(self.dataset), seed=self.seed, epoch=epoch, repeats=self.repeats)
        positions = range(step * self.batch_size + shard, (step + 1) * self.batch_size, self.shards)
        samples = []
        for position in positions:
            index = int(order[position])
            sample = self.dataset[index]
            repeat = position % self.repeats
            drawn = key(self.seed, "augment", epoch, index, repeat)
            samples.append(_fields(self.transform, sample, index, drawn))
        return collate(samples, step, shard)


@dataclass(frozen=True)
class _Evaluation:
    dataset: ImageDataset
    transform: Transform | SampleTransform
    batch_size: int

    def __call__(self, task: tuple[int, int]) -> Batch:
        step, shard = task
        indices = range(len(self.dataset))[step * self.batch_size : (step + 1) * self.batch_size]
        readable = readable_samples(self.dataset, indices)
        return collate([_fields(self.transform, sample, index) for index, sample in readable], step, shard)


def _fields(
    transform: Transform | SampleTransform, sample: Sample, index: int, key: int | None = None
) -> dict[str, Any]:
    """The fields of one sample: those of the transform, and its label, further targets and index."""
    if isinstance(transform, SampleTransform):
        made: Any = transform.transform_sample(sample, key or 0)
    else:
        made = transform(sample.image) if key is None else transform(sample.image, key)
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
    work: Callable[[Task], Batch], tasks: Sequence[Task], *, num_workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    if num_workers < 0:
        raise InputError(f"num_workers={num_workers} is negative; use 0 (this process) or more.")
    pin_memory = pin_memory and torch.cuda.is_available()
    num_workers = min(num_workers, len(tasks))
    if num_workers:
        batches = _with_workers(work, tasks, num_workers)
        return _pin_next(batches) if pin_memory else batches
    return (work(task).pin_memory() if pin_memory else work(task) for task in tasks)


def _with_workers(
    work: Callable[[Task], Batch], tasks: Sequence[Task], num_workers: int
) -> Generator[Batch, None, None]:
    with closing(WorkerPool(work, num_workers)) as pool:
        yield from pool.results(tasks)


def _pin_next(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The batches in pinned memory; a thread copies the next one while the present one is used."""

    def fetch() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else batch.pin_memory()

    # The first batch is fetched in this thread, which starts the worker processes.
    batch = fetch()
    try:
        # A new thread would use the first GPU of the machine.
        device = (torch.cuda.current_device(),)
        with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=device) as thread:
            while batch is not None:
                following = thread.submit(fetch)
                yield batch
                batch = following.result()
    finally:
        batches.close()
