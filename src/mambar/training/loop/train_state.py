"""Model, EMA, optimizer and gradient scaler, checkpointed together."""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.errors import InputError
from mambar.hub.resize import load_pretrained_weights
from mambar.models.backbones import Config
from mambar.training.checkpoint.store import Checkpoint
from mambar.training.distributed.parallel import choose_sharding
from mambar.training.loop import health
from mambar.training.loop.context import RunContext
from mambar.training.loop.ema import Ema
from mambar.training.loop.optim import Optimizer, param_groups
from mambar.training.loop.precision import LossScale
from mambar.training.loop.update import TrainStep
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import Task

_LOG = logging.getLogger("mambar.training")


class TrainState:
    """The training state of one stage. `start_from` loads other weights; `setup` makes it ready for updates."""

    optimizer: Optimizer
    update: TrainStep

    def __init__(self, recipe: Recipe, stage: Stage, *, task: Task, backbone: Any, context: RunContext) -> None:
        self.recipe, self.stage, self.task, self.context = recipe, stage, task, context
        device, dtype = context.process_group.device, context.precision.param_dtype
        self.backbone = backbone.to(device=device, dtype=dtype)
        self.backbone.set_grad_checkpointing(recipe.grad_checkpointing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(recipe.seed, "task", stage.name))
            self.model = task.build_model(self.backbone).to(device=device, dtype=dtype)
        names = [name for name, module in self.model.named_modules() if module is self.backbone]
        if not names:
            raise InputError(f"task={recipe.task}: build_model returned a model without the backbone; include it.")
        self.backbone_name = names[0]
        if stage.freeze_backbone:
            task.freeze_backbone(self.model, self.backbone)
        self.ema = None if stage.ema_decay is None else Ema(self.model, stage.ema_decay)
        self.sharding = choose_sharding(recipe.parallel, context.process_group)
        self.scale = LossScale(active=context.precision.name == "fp16")
        # The model on the meta device, if the parameters are sharded.
        self._meta_model: nn.Module | None = None
        self._is_setup = False

    @property
    def backbone_prefix(self) -> str:
        """The prefix of the backbone's parameter names in the model."""
        return self.backbone_name + "." if self.backbone_name else ""

    def setup(self) -> None:
        """Creates the optimizer and the training step, and shards the parameters with parallel=fsdp."""
        if self._is_setup:
            return
        self._is_setup = True
        recipe, stage, processes = self.recipe, self.stage, self.context.process_group
        if self.sharding.is_sharded:
            self._meta_model = copy.deepcopy(self.model).to("meta")
            self.sharding.shard_model(self.model)
            if self.ema is not None:
                self.sharding.shard_model(self.ema.model)
        if self.ema is not None:
            self.ema.follow(self.model)
        parts = param_groups(self.backbone, stage, model=self.model, prefix=self.backbone_prefix)
        self.optimizer = Optimizer(parts, stage)
        forward: Any = torch.compile(self.model) if recipe.compile else self.model
        self.update = TrainStep(
            model=self.model,
            forward=forward,
            task=self.task,
            optimizer=self.optimizer,
            ema=self.ema,
            scale=self.scale,
            precision=self.context.precision,
            process_group=processes,
            num_shards=recipe.num_shards,
            grad_accum_steps=stage.grad_accum_steps,
            clip_grad=stage.clip_grad,
            parallel=recipe.parallel,
            cuda_graphs=recipe.cuda_graphs,
            sharding=self.sharding,
        )

    def start_from(self, state: Mapping[str, Tensor], config: Config) -> None:
        """Loads the weights of another model; positions are resized, a head of another shape is initialized.

        `state` is the state dict of a backbone, or of a model that the same task built.
        """
        prefix = self.backbone_prefix
        made = bool(prefix) and any(name.startswith(prefix) for name in state)
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        with torch.no_grad():
            moved = load_pretrained_weights(self.backbone, inside if made else state, config)
        if made:
            rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
            self.model.load_state_dict(rest, strict=False)
        if moved.newly_initialized:
            _LOG.info("Newly initialized: %s.", ", ".join(moved.newly_initialized))
        if self.ema is not None:
            self._fill(self.ema.model, self.model.state_dict())

    def weights(self, which: str) -> dict[str, Tensor]:
        """The full state dict of the model, with "ema" that of the averaged one."""
        model = self.ema.model if which == "ema" and self.ema is not None else self.model
        return {name: self.sharding.full_tensor(tensor) for name, tensor in model.state_dict().items()}

    def export_model(self, which: str) -> nn.Module:
        """The unsharded model, with "ema" the averaged one."""
        if self._meta_model is None:
            return self.ema.model if which == "ema" and self.ema is not None else self.model
        weights = self.weights(which)
        model = self._meta_model.to_empty(device="cpu")
        model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
        return model

    def state_dict(self) -> dict[str, Tensor]:
        """The full tensors of a checkpoint; with sharded parameters all ranks must call this."""
        parts = {"model": self.weights("model"), "optimizer": self.optimizer.state()}
        if self.ema is not None:
            parts["ema"] = self.weights("ema")
        full = self.sharding.full_tensor
        return {f"{part}.{name}": full(value) for part, tensors in parts.items() for name, value in tensors.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads the tensors and the loss scale of a checkpoint."""
        self.setup()
        self._fill(self.model, checkpoint.tensors_of("model"))
        self.optimizer.load(checkpoint.tensors_of("optimizer"), shard=self.sharding.shard_tensor)
        if self.ema is not None:
            self._fill(self.ema.model, checkpoint.tensors_of("ema"))
        self.scale.load(checkpoint.scalars["scale"])

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the tensors of the model only."""
        self._fill(self.model, tensors)

    def find_non_finite(self) -> str | None:
        """The first non-finite parameter, module or gradient in this rank's shards of the last step."""
        for batch in self.update.last_shards:
            found = health.first_non_finite_module(self.model, partial(self.update.replay, batch))
            if found is not None:
                return found
        return None

    def _fill(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        own = model.state_dict()
        model.load_state_dict(
            {name: self.sharding.shard_tensor(tensor, own.get(name)) for name, tensor in tensors.items()}
        )
