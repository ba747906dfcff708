"""One training step: forward and backward per shard, a finite check over all processes, clipping, update, EMA.

On a GPU the passes are replayed from CUDA graphs, and the result of a step is read while the next one runs: see
`TrainStep.is_delayed`.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.loading.to_device import start_copy_to_cpu, to_device
from mambar.errors import InputError
from mambar.nn.cuda_graph import GraphedCalls, first_hook
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

_LOG = logging.getLogger("mambar.training")
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
        loading: Seconds of waiting for the data loader.
        passes: Seconds of the GPU from the first pass to the gradient norm; None on other devices.
    """

    scalars: Mapping[str, float]
    grad_norm: float
    stop: str | None
    loading: float = 0.0
    passes: float | None = None

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.scalars["loss"]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite: only then were the weights updated."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(kw_only=True)
class PendingStep:
    """A step whose numbers the GPU may still compute; `TrainStep.finish` waits for them.

    Attributes:
        numbers: The extras and the gradient norm, in page-locked memory on a GPU.
        loss, norm: The loss and the norm on the device.
        shards: The prepared shards of the step.
        outputs: Tensors with a batch dimension that the task's loss returned, one mapping for each shard.
        loading: Seconds of waiting for the data loader.
        events: CUDA events at the first pass and at the copy of `numbers`.
    """

    numbers: Tensor
    loss: Tensor
    norm: Tensor
    shards: list[Batch]
    outputs: list[dict[str, list[Tensor]]]
    loading: float
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None


@dataclass(kw_only=True)
class TrainStep:
    """Updates the weights with the shards of a step; skips the update if loss or gradient is not finite.

    Attributes:
        model: The model of the task.
        forward: The model or its compiled form.
        num_shards: Shards of a batch over all ranks.
        grad_accum_steps: Micro-batches of a shard.
        clip_grad: Maximum norm of the gradient, None for no limit.
        cuda_graphs: Whether to replay the passes from CUDA graphs where possible, and to delay results.
        last_shards: Prepared shards of the last finished step, kept to find the first non-finite module.
        is_delayed: True if a step need not be finished before the next one starts. Whether the weights are updated is
            then decided on the GPU, by `apply_if_finite`; EMA and `StepResult` follow in `finish`. The order is:
            start(1), apply(1), start(2), finish(1), apply(2), …
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
    cuda_graphs: bool = False
    sharding: Sharding = field(default_factory=Replicated)
    last_shards: list[Batch] = field(default_factory=list, init=False)
    is_delayed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.drop_path = KeyedDropPath(self.model, self.process_group.device)
        self._names: tuple[str, ...] = ()
        self._graphs = self._graphed_passes()
        if self.process_group.device.type == "cuda":
            compiled = "the model is compiled" if self.forward is not self.model else "GPU kernels are compiled"
            captured = "" if self._graphs is None else ", then CUDA graphs of the step are captured"
            _LOG.info("The first steps take longer: %s%s.", compiled, captured)
        self.is_delayed = self.cuda_graphs and self._can_be_delayed()
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
            graphed=self._graphs is not None,
        )

    def _graphed_passes(self) -> GraphedCalls[tuple[Tensor, dict[str, Tensor]]] | None:
        """The passes of a micro-batch as CUDA graphs; None, with a line in the log, where something forbids it."""
        if not self.cuda_graphs or self.process_group.device.type != "cuda" or self.forward is not self.model:
            return None
        hook = first_hook(self.model)
        if self.sharding.is_sharded:
            reason = "parallel=fsdp gathers parameters during the passes"
        elif any(getattr(module, "grad_checkpointing", False) for module in self.model.modules()):
            reason = "grad_checkpointing=true saves the state of random numbers during the passes"
        elif not self.task.cuda_graph_fields:
            reason = f"the loss of task {type(self.task).__name__} does not declare `cuda_graph_fields`"
        elif hook is not None:
            reason = f"{hook} has a hook, which a graph does not call"
        else:
            return GraphedCalls()
        _LOG.warning("The training step runs without CUDA graphs: %s.", reason)
        return None

    def _can_be_delayed(self) -> bool:
        """Whether nothing on the CPU needs the result of a step on a GPU before the next one starts.

        The next loss scale, `after_step` and the EMA of buffers do: a forward pass changes buffers.
        """
        has_buffers = self.ema is not None and next(self.model.buffers(), None) is not None
        uses_result = self.scale.active or type(self.task).after_step is not Task.after_step or has_buffers
        return self.process_group.device.type == "cuda" and not uses_result and not self.sharding.is_sharded

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
        pending = self.start(batches, keys, stop_signals=stop_signals)
        if self.is_delayed:
            self.apply_if_finite(pending, lr=lr)
        return self.finish(pending, lr=lr, progress=progress)

    def start(self, batches: Iterator[Batch], keys: StepKeys, *, stop_signals: StopSignals) -> PendingStep:
        """Launches the passes of a step."""
        gradients = self.gradients
        gradients.begin_step()
        loading, first, shards, outputs = 0.0, None, [], []
        local_shards = self.process_group.local_shards(self.num_shards)
        for number in local_shards:
            gradients.begin_shard()
            started = time.perf_counter()
            batch = next(batches)
            loading += time.perf_counter() - started
            first = first or self._event()
            batch = replace(batch, key=key(keys.seed, "drop", keys.epoch, keys.step, batch.shard))
            prepared = self.task.prepare(batch.to(self.process_group.device), seed=keys.seed, epoch=keys.epoch)
            shards.append(prepared)
            last = number == local_shards[-1]
            outputs.append(self._backward(prepared, last=last))
            if last:
                # Copied asynchronously: a tensor made on the GPU would wait for the backward pass.
                gradients.add_extras(0, to_device(torch.tensor(stop_signals.flags()), self.process_group.device))
            gradients.end_shard(last=last)
        if self.scale.value != 1:
            gradients.scale(1 / self.scale.value)
        norm, extras = gradients.norm(), gradients.extras
        # A copy: the next step resets the extras.
        loss, numbers = extras[len(SIGNALS)].clone(), torch.cat([extras, norm[None]])
        if self.process_group.device.type == "cuda":
            numbers = start_copy_to_cpu(numbers)
        read = self._event()
        events = None if first is None or read is None else (first, read)
        return PendingStep(
            numbers=numbers, loss=loss, norm=norm, shards=shards, outputs=outputs, loading=loading, events=events
        )

    @torch.no_grad()
    def apply_if_finite(self, pending: PendingStep, *, lr: float) -> None:
        """The update of a delayed step, decided on the GPU; the step before it must be finished.

        The weights are bit for bit those of an update that is decided on the CPU.
        """
        gradients, norm = self.gradients, pending.norm
        if self.clip_grad is not None:
            wide = norm.double()
            gradients.scale(torch.where(wide > self.clip_grad, self.clip_grad / (wide + 1e-6), 1.0).to(norm.dtype))
        gradients.write_grads()
        self.optimizer.step(lr, skip=~(pending.loss.isfinite() & norm.isfinite()))

    def finish(self, pending: PendingStep, *, lr: float, progress: TrainingProgress) -> StepResult:
        """Waits for the result of a step; updates the weights, unless `is_delayed`, and what follows them."""
        seconds = None
        if pending.events is not None:
            first, read = pending.events
            read.synchronize()
            seconds = first.elapsed_time(read) / 1e3
        *extras, grad_norm = pending.numbers.tolist()
        result = StepResult(
            scalars=dict(zip(self._names, extras[len(SIGNALS) :], strict=False)),
            grad_norm=grad_norm,
            stop=StopSignals.first_of(extras[: len(SIGNALS)]),
            loading=pending.loading,
            passes=seconds,
        )
        self.last_shards = pending.shards
        if result.is_finite:
            if not self.is_delayed:
                self._apply(grad_norm, lr)
            with torch.no_grad():
                self.task.after_step(self.model, progress, self._gathered(pending.outputs))
                if self.ema is not None:
                    self.ema.update()
        return result

    def _event(self) -> torch.cuda.Event | None:
        if self.process_group.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _backward(self, shard: Batch, *, last: bool) -> dict[str, list[Tensor]]:
        """Runs the passes of a shard; its outputs with a batch dimension, by micro-batch."""
        gradients = self.gradients
        self.drop_path.draw(shard.key, len(shard))
        size = len(shard) // self.grad_accum_steps
        outputs: dict[str, list[Tensor]] = {}
        for part in range(self.grad_accum_steps):
            start, stop = part * size, (part + 1) * size
            self.drop_path.window(start, stop)
            micro_batch = replace(shard.slice(start, stop), key=shard.key + part).cast(self.precision.param_dtype)
            # All other random numbers of the model and the loss (dropout, masks) follow the key too.
            torch.manual_seed(micro_batch.key)
            if self._graphs is not None:
                scalars, found = self._replay_graph(micro_batch)
            else:
                with gradients.backward_context(last=last and part == self.grad_accum_steps - 1):
                    scalars, found = self._run(micro_batch)
            gradients.add_extras(len(SIGNALS), scalars)
            for name, value in found.items():
                outputs.setdefault(name, []).append(value)
        return outputs

    def _run(self, micro_batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward pass of a micro-batch: its scalars, and its outputs with a batch dimension."""
        share = 1 / (self.num_shards * self.grad_accum_steps)
        with self.precision.autocast():
            found = self.task.loss(self.forward, micro_batch)
        (found["loss"] * (share * self.scale.value * self.gradients.loss_factor)).backward()
        return self._scalars(found, share), {name: value.detach() for name, value in found.items() if value.ndim}

    def _replay_graph(self, micro_batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._graphs is not None
        tensors = {name: micro_batch[name] for name in self.task.cuda_graph_fields}
        if self.drop_path.layers:
            tensors["drop_path"] = self.drop_path.part
        scalars, outputs = self._graphs(self._run_graphed, tensors, self.scale.value)
        # The next replay overwrites them.
        return scalars, {name: value.clone() for name, value in outputs.items()}

    def _run_graphed(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.drop_path.layers:
            self.drop_path.part = tensors["drop_path"]
        return self._run(Batch({name: tensors[name] for name in self.task.cuda_graph_fields}))

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

    def _gathered(self, own: list[dict[str, list[Tensor]]]) -> dict[str, Tensor]:
        """The outputs of the whole batch in the order of the shards, the same on every rank."""
        if not own or not own[0]:
            return {}
        joined = [{name: torch.cat(parts) for name, parts in shard.items()} for shard in own]
        cpu = [{name: value.cpu() for name, value in shard.items()} for shard in joined]
        ranks = self.process_group.gather_objects(cpu) if self.process_group.world_size > 1 else [joined]
        # Shard s belongs to rank s modulo the number of ranks.
        ordered = [shard for shards in zip(*ranks, strict=True) for shard in shards]
        device = self.process_group.device
        return {name: torch.cat([shard[name].to(device) for shard in ordered]) for name in joined[0]}

    @torch.no_grad()
    def _apply(self, grad_norm: float, lr: float) -> None:
        gradients = self.gradients
        if self.clip_grad is not None and grad_norm > self.clip_grad:
            gradients.scale(self.clip_grad / (grad_norm + 1e-6))
        gradients.write_grads()
        self.optimizer.step(lr)
