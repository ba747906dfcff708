"""The exponential moving average of the weights: a second model that is evaluated, saved and may be delivered."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """average = decay · average + (1 - decay) · weights, in the weights' own precision."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Averages the parameters that `model` has now (they change where FSDP cuts them)."""
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """One step after an update of the weights."""
        self._average(self._averages, self._weights, 0)
        for average, buffer in self._buffers:
            average.copy_(buffer)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.model.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over stored averages."""
        self.model.load_state_dict(dict(state))
