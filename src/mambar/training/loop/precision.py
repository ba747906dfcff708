"""Precision of parameters and autocast, and the loss scale of fp16."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

_TYPES: Final = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PrecisionPolicy:
    """Dtype of the parameters and of autocast.

    Attributes:
        name: fp64, fp32, bf16 or fp16.
        param_dtype: Dtype of parameters and optimizer state.
        autocast: Context manager for forward passes; no autocast with fp64 and fp32.
    """

    name: str
    param_dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager[object]]

    @classmethod
    def of(cls, name: str, device: torch.device) -> "PrecisionPolicy":
        """The policy of this name; `auto` is bf16 on a GPU that supports it, else fp32."""
        if name == "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
            name = "bf16" if has_bf16 else "fp32"
        dtype = _TYPES[name]
        if name in ("bf16", "fp16"):
            context = partial(torch.autocast, device.type, dtype=dtype)
            return cls(name=name, param_dtype=torch.float32, autocast=context)
        return cls(name=name, param_dtype=dtype, autocast=nullcontext)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flushes denormal numbers to zero on the CPU inside the block; they make the first epochs several times slower."""
    before = torch.full((), 1e-40) + 0 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(before))


class LossScale:
    """Dynamic loss scale of fp16: halved after a non-finite gradient, doubled after `patience` finite steps.

    Other precisions keep the scale at 1. Non-finite steps at a scale above 1 are expected and do not count as errors.
    """

    def __init__(self, *, active: bool, start: float = 2.0**16, patience: int = 2000) -> None:
        self.active = active
        self.value = start if active else 1.0
        self.patience = patience
        self.good = 0

    def update(self, *, finite: bool) -> bool:
        """Updates the scale after a step; True if the step was not finite and the scale was above 1."""
        if not self.active:
            return False
        if finite:
            self.good += 1
            if self.good >= self.patience:
                self.value, self.good = min(self.value * 2, 2.0**24), 0
            return False
        explained = self.value > 1
        self.value, self.good = max(self.value / 2, 1.0), 0
        return explained

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"value": self.value, "good": self.good}

    def load(self, state: dict[str, Any]) -> None:
        """Loads the state of a checkpoint."""
        self.value, self.good = float(state["value"]), int(state["good"])
