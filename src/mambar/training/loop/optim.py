"""AdamW with parameter groups by weight decay and learning-rate scale."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambar.training.stage import DecayGroups, Stage


def is_decayed(name: str, parameter: Tensor, exempt: Iterable[str], rule: DecayGroups) -> bool:
    """Whether weight decay applies to a parameter.

    official: all but 1-D tensors, biases and the names in `exempt` (positions, registers). The released code marks
    A_log as not decayed, but its optimizer ignores the mark: A_log is decayed. corrected: A_log is exempt too, as
    mamba_ssm intends. `tests/training/loop/test_optim.py` compares the
    official rule with the golden manifest.
    """
    if parameter.ndim <= 1 or name.endswith(".bias") or name in set(exempt):
        return False
    return rule == "official" or not name.endswith(".A_log")


def param_groups(
    backbone: Any, stage: Stage, *, model: nn.Module | None = None, prefix: str = ""
) -> list[dict[str, Any]]:
    """The parameter groups of the trainable parameters, in a fixed order.

    As timm's, with `lr_scale`, a factor on the learning rate, and in addition the `names` of the `params`. `model` is
    the module that a task built around the backbone, `prefix` that of the backbone's names in it. All other
    parameters belong to the last layer.
    """
    exempt = {prefix + name for name in backbone.no_weight_decay()}
    layers = _layer_ids(backbone) if stage.layer_decay != 1 else {}
    last = backbone.num_layers + 1
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in (model or backbone).named_parameters():
        if not parameter.requires_grad:
            continue
        decay = stage.weight_decay if is_decayed(name, parameter, exempt, stage.decay_groups) else 0.0
        depth = layers.get(name.removeprefix(prefix), last) if name.startswith(prefix) else last
        scale = stage.layer_decay ** (last - depth)
        empty = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = found.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(found.values())


def _layer_ids(backbone: Any) -> dict[str, int]:
    """Parameter name → 0 for the stem, k + 1 for block k; as in timm, the final norm has the id of the last block."""
    from timm.models import group_parameters

    return group_parameters(backbone, backbone.group_matcher(), reverse=True)


class Optimizer:
    """AdamW over parameter groups; its state is stored by parameter name."""

    def __init__(self, groups: list[dict[str, Any]], stage: Stage) -> None:
        self.names = [name for group in groups for name in group["names"]]
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        on_known_device = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)
        self.adamw = torch.optim.AdamW(
            groups, lr=stage.peak_lr, betas=stage.betas, eps=stage.eps, fused=on_known_device
        )

    def step(self, lr: float, *, skip: Tensor | None = None) -> None:
        """One update with the present gradients; none if `skip`, a tensor that is not read on the CPU, is true."""
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # The attribute with which torch.amp.GradScaler tells a fused optimizer the same.
        self.adamw.found_inf = None if skip is None else skip.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step`."""
        return {
            f"{name}.{key}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for key, value in self.adamw.state.get(parameter, {}).items()
        }

    def load(
        self, state: Mapping[str, Tensor], *, shard: Callable[[Tensor, Tensor | None], Tensor] | None = None
    ) -> None:
        """Loads the result of `state`; `shard` returns this rank's shard of a full tensor."""
        self.adamw.state.clear()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            own = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
            if own:
                # The fused update keeps its step count beside the parameter.
                count = own.pop("step").to(parameter.device)
                moments = {key: value.to(parameter.device) for key, value in own.items()}
                if shard is not None:
                    moments = {key: shard(value, parameter) for key, value in moments.items()}
                self.adamw.state[parameter] = {"step": count, **moments}


def set_training_mode(model: nn.Module) -> None:
    """Training mode, but evaluation mode for frozen modules, which then have no drop path."""
    model.train()
    for child in model.modules():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
