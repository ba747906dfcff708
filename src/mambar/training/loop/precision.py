"""Numbers of 64, 32 or 16 bits: what a precision's name means on a device, and the loss scale of fp16."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

_TYPES: Final = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class PrecisionPolicy:
    """Parameters and optimiser in `storage`; products inside `autocast`, which is none for whole precisions."""

    name: str
    param_dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager[object]]

    @classmethod
    def of(cls, name: str, device: torch.device) -> "PrecisionPolicy":
        """What `name` means here; auto is bf16 on a GPU that has it, else fp32."""
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
    """On a CPU, denormal numbers count as zero inside: they make the first epochs of a scan many times slower."""
    before = torch.full((), 1e-40) + 0 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(before))


class LossScale:
    """fp16's loss scale: a power of two, halved at a non-finite gradient, doubled after a long good run.

    Other precisions keep the scale at 1. A non-finite step while the scale is above 1 is how the scale finds
    its place, not a fault of the run.
    """

    def __init__(self, *, active: bool, start: float = 2.0**16, patience: int = 2000) -> None:
        self.active = active
        self.value = start if active else 1.0
        self.patience = patience
        self.good = 0

    def update(self, *, finite: bool) -> bool:
        """Takes note of a step; whether a non-finite one is explained by the scale."""
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
        """What a resumed run needs."""
        return {"value": self.value, "good": self.good}

    def load(self, state: dict[str, Any]) -> None:
        """Takes it over."""
        self.value, self.good = float(state["value"]), int(state["good"])
