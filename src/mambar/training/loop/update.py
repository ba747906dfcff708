"""One update: forward and backward shard by shard, the finite check that all processes share, clip, step, EMA."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.loading.to_device import sent
from mambar.training.distributed.parallel import parallelize
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.distributed.sharding import Replicated, Sharding
from mambar.training.loop.ema import Ema
from mambar.training.loop.keyed_drop_path import KeyedDropPath
from mambar.training.loop.optim import Optimizer
from mambar.training.loop.precision import LossScale, Numerics
from mambar.training.loop.signals import SIGNALS, Wishes
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
class Outcome:
    """What a step came to, the same in every process: mean loss, hits, gradient norm, and what was asked for."""

    loss: float
    hits: float
    grad_norm: float
    stop: str | None

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were numbers: only then were the weights changed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Updater:
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
        numerics: Numerics,
        processes: ProcessGroup,
        shards: int,
        accumulation: int,
        clip: float | None,
        parallel: Parallel = "exact",
        sharding: Sharding | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.optimizer = optimizer
        self.ema = ema
        self.scale = scale
        self.numerics = numerics
        self.processes = processes
        self.shards = shards
        self.accumulation = accumulation
        self.clip = clip
        self.drop_path = KeyedDropPath(model, processes.device)
        # The shards of the step at hand, for naming the culprit when a number is not finite.
        self.shards_seen: list[tuple[Prepared, int]] = []
        self.forward, self.gradients = parallelize(
            model,
            forward,
            optimizer.parameters,
            kind=parallel,
            sharding=sharding or Replicated(),
            process_group=processes,
            extras=_EXTRAS,
            num_shards=shards,
            grad_accum_steps=accumulation,
        )

    def __call__(self, batches: Iterator[Batch], keys: StepKeys, *, lr: float, wishes: Wishes) -> Outcome:
        """Takes the shards of one step from `batches` and updates the weights at learning rate `lr`."""
        gradients = self.gradients
        gradients.open_step()
        self.shards_seen = []
        mine = self.processes.local_shards(self.shards)
        for number in mine:
            gradients.open_shard()
            batch = next(batches)
            prepared = self.task.prepare(batch.to(self.processes.device), seed=keys.seed, epoch=keys.epoch)
            drop_key = key(keys.seed, "drop", keys.epoch, keys.step, batch.shard)
            self.shards_seen.append((prepared, drop_key))
            last = number == mine[-1]
            self._backward(prepared, drop_key, last=last)
            if last:
                # Sent, not made there: that would wait for the backward pass before the sums are even asked for.
                gradients.add(2, sent(torch.tensor(wishes.flags()), self.processes.device))
            gradients.close_shard(last=last)
        if self.scale.value != 1:
            gradients.multiply(1 / self.scale.value)
        loss, hits, *flags, grad_norm = torch.cat([gradients.extras, gradients.norm()[None]]).tolist()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self._apply(grad_norm, lr)
        return Outcome(loss=loss, hits=hits, grad_norm=grad_norm, stop=Wishes.name(flags))

    def _backward(self, shard: Prepared, drop_key: int, *, last: bool) -> None:
        gradients = self.gradients
        self.drop_path.draw(drop_key, len(shard))
        size = len(shard) // self.accumulation
        share = 1 / (self.shards * self.accumulation)
        for part in range(self.accumulation):
            start, stop = part * size, (part + 1) * size
            self.drop_path.window(start, stop)
            # Whatever else draws inside the model (dropout) follows the key too.
            torch.manual_seed(drop_key + part)
            with gradients.backward_pass(last=last and part == self.accumulation - 1):
                with self.numerics.autocast():
                    loss = self.task.loss(self.forward, self._stored(shard.part(start, stop)))
                (loss.value * (share * self.scale.value * gradients.loss_factor)).backward()
            gradients.add(0, torch.stack([loss.value.detach() * share, loss.hits]))

    def replay(self, shard: Prepared, drop_key: int) -> Tensor:
        """The loss of a shard of the last step again, for finding the culprit."""
        self.drop_path.draw(drop_key, len(shard))
        with self.numerics.autocast():
            return self.task.loss(self.model, self._stored(shard)).value * self.scale.value

    def _stored(self, batch: Prepared) -> Prepared:
        """The images in the precision of the weights (only fp64 needs a change)."""
        return Prepared(batch.images.to(self.numerics.storage), batch.targets)

    def _apply(self, grad_norm: float, lr: float) -> None:
        gradients = self.gradients
        if self.clip is not None and grad_norm > self.clip:
            gradients.multiply(self.clip / (grad_norm + 1e-6))
        gradients.hand_over()
        self.optimizer.step(lr)
        if self.ema is not None:
            self.ema.update()
