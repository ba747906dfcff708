"""One update: forward and backward shard by shard, the finite check that all processes share, clip, step, EMA."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.loading.to_device import to_device
from mambar.training.distributed.parallel import parallelize
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.distributed.sharding import Replicated, Sharding
from mambar.training.loop.ema import Ema
from mambar.training.loop.keyed_drop_path import KeyedDropPath
from mambar.training.loop.optim import Optimizer
from mambar.training.loop.precision import LossScale, PrecisionPolicy
from mambar.training.loop.signals import SIGNALS, StopSignals
from mambar.training.recipe import Parallel
from mambar.training.task import Prepared, Task

# Added up over the shards beside the gradients: loss, hits, and one flag for each stop signal.
_EXTRAS = 2 + len(SIGNALS)


@dataclass(frozen=True, kw_only=True)
class StepKeys:
    """What keys the randomness of a step: the seed of the run's course, the epoch, the step in it."""

    seed: int
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step came to, the same in every process: mean loss, hits, gradient norm, and what was asked for."""

    loss: float
    num_correct: float
    grad_norm: float
    stop: str | None

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient were numbers: only then were the weights changed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class TrainStep:
    """Turns the shards of a step into one update of the weights, or into none if a number is not finite."""

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        *,
        task: Task,
        optimizer: Optimizer,
        ema: Ema | None,
        scale: LossScale,
        precision: PrecisionPolicy,
        process_group: ProcessGroup,
        num_shards: int,
        grad_accum_steps: int,
        clip_grad: float | None,
        parallel: Parallel = "exact",
        sharding: Sharding | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.ema = ema
        self.scale = scale
        self.precision = precision
        self.process_group = process_group
        self.num_shards = num_shards
        self.grad_accum_steps = grad_accum_steps
        self.clip_grad = clip_grad
        self.drop_path = KeyedDropPath(model, process_group.device)
        # The shards of the step at hand, for naming the culprit when a number is not finite.
        self.last_shards: list[tuple[Prepared, int]] = []
        self.forward, self.gradients = parallelize(
            model,
            forward,
            optimizer.parameters,
            kind=parallel,
            sharding=sharding or Replicated(),
            process_group=process_group,
            extras=_EXTRAS,
            num_shards=num_shards,
            grad_accum_steps=grad_accum_steps,
        )

    def __call__(self, batches: Iterator[Batch], keys: StepKeys, *, lr: float, stop_signals: StopSignals) -> StepResult:
        """Takes the shards of one step from `batches` and updates the weights at learning rate `lr`."""
        gradients = self.gradients
        gradients.begin_step()
        self.last_shards = []
        mine = self.process_group.local_shards(self.num_shards)
        for number in mine:
            gradients.begin_shard()
            batch = next(batches)
            prepared = self.task.prepare(batch.to(self.process_group.device), seed=keys.seed, epoch=keys.epoch)
            drop_key = key(keys.seed, "drop", keys.epoch, keys.step, batch.shard)
            self.last_shards.append((prepared, drop_key))
            last = number == mine[-1]
            self._backward(prepared, drop_key, last=last)
            if last:
                # Sent, not made there: that would wait for the backward pass before the sums are even asked for.
                gradients.add_extras(2, to_device(torch.tensor(stop_signals.flags()), self.process_group.device))
            gradients.end_shard(last=last)
        if self.scale.value != 1:
            gradients.scale(1 / self.scale.value)
        loss, hits, *flags, grad_norm = torch.cat([gradients.extras, gradients.norm()[None]]).tolist()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self._apply(grad_norm, lr)
        return StepResult(loss=loss, num_correct=hits, grad_norm=grad_norm, stop=StopSignals.first_of(flags))

    def _backward(self, shard: Prepared, drop_key: int, *, last: bool) -> None:
        gradients = self.gradients
        self.drop_path.draw(drop_key, len(shard))
        size = len(shard) // self.grad_accum_steps
        share = 1 / (self.num_shards * self.grad_accum_steps)
        for part in range(self.grad_accum_steps):
            start, stop = part * size, (part + 1) * size
            self.drop_path.window(start, stop)
            # Whatever else draws inside the model (dropout) follows the key too.
            torch.manual_seed(drop_key + part)
            with gradients.backward_context(last=last and part == self.grad_accum_steps - 1):
                with self.precision.autocast():
                    loss = self.task.loss(self.forward, self._stored(shard.part(start, stop)))
                (loss.value * (share * self.scale.value * gradients.loss_factor)).backward()
            gradients.add_extras(0, torch.stack([loss.value.detach() * share, loss.num_correct]))

    def replay(self, shard: Prepared, drop_key: int) -> Tensor:
        """The loss of a shard of the last step again, for finding the culprit."""
        self.drop_path.draw(drop_key, len(shard))
        with self.precision.autocast():
            return self.task.loss(self.model, self._stored(shard)).value * self.scale.value

    def _stored(self, batch: Prepared) -> Prepared:
        """The images in the precision of the weights (only fp64 needs a change)."""
        return Prepared(batch.images.to(self.precision.param_dtype), batch.targets)

    def _apply(self, grad_norm: float, lr: float) -> None:
        gradients = self.gradients
        if self.clip_grad is not None and grad_norm > self.clip_grad:
            gradients.scale(self.clip_grad / (grad_norm + 1e-6))
        gradients.write_grads()
        self.optimizer.step(lr)
        if self.ema is not None:
            self.ema.update()
