"""One training step: forward and backward per shard, a finite check over all processes, clipping, update, EMA."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.loading.to_device import to_device
from mambar.errors import InputError
from mambar.training.distributed.parallel import parallelize
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.distributed.sharding import Replicated, Sharding
from mambar.training.loop.context import TrainingProgress
from mambar.training.loop.ema import Ema
from mambar.training.loop.keyed_drop_path import KeyedDropPath
from mambar.training.loop.optim import Optimizer
from mambar.training.loop.precision import LossScale, PrecisionPolicy
from mambar.training.loop.signals import SIGNALS, StopSignals
from mambar.training.recipe import Parallel
from mambar.training.task import Task

# Scalars that a task's loss may return. They are summed beside the gradients, after one flag for each stop signal.
MAX_SCALARS: Final = 32
_NUM_EXTRAS: Final = len(SIGNALS) + MAX_SCALARS


@dataclass(frozen=True, kw_only=True)
class StepKeys:
    """The keys of all random numbers of a step.

    Attributes:
        seed: Seed of the stage, another one after each rollback.
        epoch: Epoch of the stage.
        step: Step within the epoch.
    """

    seed: int
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step, the same on every rank.

    Attributes:
        scalars: The task's scalars by name: means over the batch, and sums of those named `num_…`.
        grad_norm: Norm of the gradient before clipping.
        stop: The stop signal that some rank received, if any.
    """

    scalars: Mapping[str, float]
    grad_norm: float
    stop: str | None

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.scalars["loss"]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite: only then were the weights updated."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(kw_only=True)
class TrainStep:
    """Updates the weights with the shards of a step; skips the update if loss or gradient is not finite.

    Attributes:
        model: The model of the task.
        forward: The model or its compiled form.
        num_shards: Shards of a batch over all ranks.
        grad_accum_steps: Micro-batches of a shard.
        clip_grad: Maximum norm of the gradient, None for no limit.
        last_shards: Prepared shards of the last step, kept to find the first non-finite module.
    """

    model: nn.Module
    forward: nn.Module
    task: Task
    optimizer: Optimizer
    ema: Ema | None
    scale: LossScale
    precision: PrecisionPolicy
    process_group: ProcessGroup
    num_shards: int
    grad_accum_steps: int
    clip_grad: float | None
    parallel: Parallel = "exact"
    sharding: Sharding = field(default_factory=Replicated)
    last_shards: list[Batch] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.drop_path = KeyedDropPath(self.model, self.process_group.device)
        self._names: tuple[str, ...] = ()
        # Tensors with a batch dimension that the task's loss returned, one mapping for each shard of this rank.
        self._outputs: list[dict[str, list[Tensor]]] = []
        self.forward, self.gradients = parallelize(
            self.model,
            self.forward,
            self.optimizer.parameters,
            kind=self.parallel,
            sharding=self.sharding,
            process_group=self.process_group,
            extras=_NUM_EXTRAS,
            num_shards=self.num_shards,
            grad_accum_steps=self.grad_accum_steps,
        )

    def __call__(
        self,
        batches: Iterator[Batch],
        keys: StepKeys,
        *,
        lr: float,
        stop_signals: StopSignals,
        progress: TrainingProgress,
    ) -> StepResult:
        """Takes the shards of one step from `batches` and updates the weights at learning rate `lr`."""
        gradients = self.gradients
        gradients.begin_step()
        self.last_shards, self._outputs = [], []
        local_shards = self.process_group.local_shards(self.num_shards)
        for number in local_shards:
            gradients.begin_shard()
            batch = next(batches)
            batch = replace(batch, key=key(keys.seed, "drop", keys.epoch, keys.step, batch.shard))
            prepared = self.task.prepare(batch.to(self.process_group.device), seed=keys.seed, epoch=keys.epoch)
            self.last_shards.append(prepared)
            last = number == local_shards[-1]
            self._backward(prepared, last=last)
            if last:
                # Copied asynchronously: a tensor made on the GPU would wait for the backward pass.
                gradients.add_extras(0, to_device(torch.tensor(stop_signals.flags()), self.process_group.device))
            gradients.end_shard(last=last)
        if self.scale.value != 1:
            gradients.scale(1 / self.scale.value)
        *extras, grad_norm = torch.cat([gradients.extras, gradients.norm()[None]]).tolist()
        scalars = dict(zip(self._names, extras[len(SIGNALS) :], strict=False))
        result = StepResult(scalars=scalars, grad_norm=grad_norm, stop=StopSignals.first_of(extras[: len(SIGNALS)]))
        if result.is_finite:
            self._apply(grad_norm, lr, progress)
        return result

    def _backward(self, shard: Batch, *, last: bool) -> None:
        gradients = self.gradients
        self.drop_path.draw(shard.key, len(shard))
        size = len(shard) // self.grad_accum_steps
        share = 1 / (self.num_shards * self.grad_accum_steps)
        self._outputs.append({})
        for part in range(self.grad_accum_steps):
            start, stop = part * size, (part + 1) * size
            self.drop_path.window(start, stop)
            micro_batch = replace(shard.slice(start, stop), key=shard.key + part)
            # All other random numbers of the model and the loss (dropout, masks) follow the key too.
            torch.manual_seed(micro_batch.key)
            with gradients.backward_context(last=last and part == self.grad_accum_steps - 1):
                with self.precision.autocast():
                    found = self.task.loss(self.forward, micro_batch.cast(self.precision.param_dtype))
                (found["loss"] * (share * self.scale.value * gradients.loss_factor)).backward()
            gradients.add_extras(len(SIGNALS), self._scalars(found, share))
            for name, value in found.items():
                if value.ndim:
                    self._outputs[-1].setdefault(name, []).append(value.detach())

    def _scalars(self, found: Mapping[str, Tensor], share: float) -> Tensor:
        """The scalars of a micro-batch in the order of their names, means weighted by its share of the batch."""
        names = ("loss", *sorted(name for name, value in found.items() if name != "loss" and value.ndim == 0))
        if self._names and names != self._names:
            raise InputError(f"the loss returned {names} after {self._names}; return the same names each time.")
        if len(names) > MAX_SCALARS:
            raise InputError(f"the loss returned {len(names)} scalars; at most {MAX_SCALARS} are allowed.")
        self._names = names
        values = [found[name].detach().to(found["loss"].dtype) for name in names]
        return torch.stack(
            [value if name.startswith("num_") else value * share for name, value in zip(names, values, strict=True)]
        )

    def replay(self, shard: Batch) -> Tensor:
        """The loss of a shard of the last step, computed again."""
        self.drop_path.draw(shard.key, len(shard))
        with self.precision.autocast():
            found = self.task.loss(self.model, shard.cast(self.precision.param_dtype))
        return found["loss"] * self.scale.value

    def _gathered_outputs(self) -> dict[str, Tensor]:
        """The outputs of the whole batch in the order of the shards, the same on every rank."""
        own = [{name: torch.cat(parts) for name, parts in shard.items()} for shard in self._outputs]
        if not own or not own[0]:
            return {}
        cpu = [{name: value.cpu() for name, value in shard.items()} for shard in own]
        ranks = self.process_group.gather_objects(cpu) if self.process_group.world_size > 1 else [own]
        # Shard s belongs to rank s modulo the number of ranks.
        ordered = [shard for shards in zip(*ranks, strict=True) for shard in shards]
        device = self.process_group.device
        return {name: torch.cat([shard[name].to(device) for shard in ordered]) for name in own[0]}

    @torch.no_grad()
    def _apply(self, grad_norm: float, lr: float, progress: TrainingProgress) -> None:
        gradients = self.gradients
        if self.clip_grad is not None and grad_norm > self.clip_grad:
            gradients.scale(self.clip_grad / (grad_norm + 1e-6))
        gradients.write_grads()
        self.optimizer.step(lr)
        self.task.after_step(self.model, progress, self._gathered_outputs())
        if self.ema is not None:
            self.ema.update()
