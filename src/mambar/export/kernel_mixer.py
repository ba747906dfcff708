"""Tracing with the CPU kernels as operators `mambar::…`: as fast as the model, for programs that can import mambar."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar import ops
from mambar.errors import InputError
from mambar.messages import needs_package
from mambar.nn.mixer import DirectionalScan, MambaMixer
from mambar.nn.placement import Grid

_BACKEND = "llvm"


class KernelMixer(nn.Module):
    """A `MambaMixer` that always calls the fused kernel, which the model itself does not when it is traced."""

    def __init__(self, mixer: MambaMixer) -> None:
        super().__init__()
        self.in_proj, self.out_proj = mixer.in_proj, mixer.out_proj
        self.forward_scan, self.backward_scan = mixer.forward_scan, mixer.backward_scan
        self.average_directions = mixer.average_directions
        with torch.no_grad():
            self.register_buffer("forward_A", mixer.forward_scan.weights().A)
            self.register_buffer("backward_A", mixer.backward_scan.weights().A)

    def forward(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        mixed = ops.bidirectional_mix(
            self.in_proj(tokens),
            self._weights(self.forward_scan, "forward_A"),
            self._weights(self.backward_scan, "backward_A"),
            average=self.average_directions,
            backend=_BACKEND,
        )
        return self.out_proj(mixed)

    def _weights(self, scan: DirectionalScan, A: str) -> ops.ScanDirection:
        return scan.weights()._replace(A=self.get_buffer(A))


def kernel_mixer(mixer: nn.Module) -> nn.Module:
    """The mixer of a traceable model that keeps its kernels; other mixers call theirs inside `keep_kernels`."""
    return KernelMixer(mixer) if isinstance(mixer, MambaMixer) else mixer


@contextlib.contextmanager
def keep_kernels() -> Iterator[None]:
    """A context in which tracing keeps the CPU kernels as operators; `InputError` if they cannot run here."""
    if importlib.util.find_spec("llvmlite") is None:
        raise InputError(needs_package("Export with kernels", "llvmlite", extra="cpu"))
    with ops.use_backend(_BACKEND):
        yield
