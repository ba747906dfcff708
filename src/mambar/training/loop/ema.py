"""Exponential moving average (EMA) of the weights, kept in a copy of the model."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """A model copy with averaged parameters: ema = decay · ema + (1 - decay) · weights, in the weights' dtype."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Averages the present parameters of `model`; call it again after FSDP has replaced them by shards."""
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages after an optimizer step; buffers are copied."""
        self._average(self._averages, self._weights, 0)
        for average, buffer in self._buffers:
            average.copy_(buffer)

    def state(self) -> dict[str, Tensor]:
        """The state dict of the averaged model."""
        return self.model.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state dict."""
        self.model.load_state_dict(dict(state))
