"""A mixer for ONNX export: one standard `Scan` over the tokens for both directions.

The reference scan of logarithmic depth can be traced too, but its graph is slow and fixed to one length. For 24 blocks
of width 384 on two cores an image takes 12 s, with `Scan` 0.5 s. Here the recurrence is a custom op, which the ONNX
exporter translates to `Scan`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.errors import InputError
from mambar.nn.mixer import DirectionalScan, MambaMixer
from mambar.nn.placement import Grid

# Steps of an iteration of the ONNX loop, written out in `onnx_scan.py`; the length must be a multiple of it.
CHUNK = 8

# dt and dt·u (batch, length, 2, 1, inner), B (batch, length, 2, state, 1), C (batch, length, 2, 1, state) and
# A (1, 2, state, inner); gives C h in the shape of dt.
torch.library.define("mambar_export::scan_loop", "(Tensor dt, Tensor dtu, Tensor B, Tensor C, Tensor A) -> Tensor")


@torch.library.impl("mambar_export::scan_loop", "CompositeExplicitAutograd")
def _scan_loop(dt: Tensor, dtu: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    state, outputs = dt[:, 0] * 0 * A, []
    for index in range(dt.shape[1]):
        state = state * torch.exp(dt[:, index] * A) + dtu[:, index] * B[:, index]
        outputs.append(C[:, index] @ state)
    return torch.stack(outputs, dim=1)


@torch.library.register_fake("mambar_export::scan_loop")
def _(dt: Tensor, dtu: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    return torch.empty_like(dt, memory_format=torch.contiguous_format)


def translations() -> dict[Any, Any]:
    """The custom translation table of the ONNX exporter."""
    from mambar.export.onnx_scan import scan_loop

    return {torch.ops.mambar_export.scan_loop.default: scan_loop}


class ScanMixer(nn.Module):
    """A `MambaMixer` that runs both directions in one loop."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        if not isinstance(mixer, MambaMixer):
            raise InputError(
                f"ONNX export with scan='loop' supports mixer='bidirectional'; the model has a {type(mixer).__name__}; "
                "use scan='doubling'."
            )
        self.in_proj, self.out_proj = mixer.in_proj, mixer.out_proj
        self.directions = nn.ModuleList([mixer.forward_scan, mixer.backward_scan])
        self.scale = 0.5 if mixer.average_directions else 1.0
        weights = [direction.weights() for direction in (mixer.forward_scan, mixer.backward_scan)]
        with torch.no_grad():
            self.register_buffer("A", torch.stack([each.A.T for each in weights])[None].contiguous())
            self.register_buffer("D", torch.stack([each.D for each in weights]))

    def forward(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid | None = None, positions: Sequence[int] = ()
    ) -> Float[Tensor, "batch length dim"]:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)  # (B, L, E)
        channels = x.transpose(1, 2)
        parts = [
            self._step_inputs(direction, channels, reverse=reverse)
            for direction, reverse in zip(self.directions, (False, True), strict=True)
        ]
        u, dt, B, C = (torch.stack(part, dim=2) for part in zip(*parts, strict=True))  # (B, L + padding, 2, ...)
        rows = (dt.unsqueeze(3), (dt * u).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3))
        y = torch.ops.mambar_export.scan_loop(*rows, self.get_buffer("A")).squeeze(3)
        y = (y + u * self.get_buffer("D"))[:, : x.shape[1]]
        total = y[:, :, 0] + y[:, :, 1].flip(1)  # (B, L, E)
        return self.out_proj(total * functional.silu(z) * self.scale)

    def _step_inputs(self, direction: nn.Module, x: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, dt, B and C (batch, length, ...) in scan order, of x (batch, inner, length) in the order of the tokens.

        Their length is a multiple of `CHUNK`. The steps after the last token do not change those before them.
        """
        assert isinstance(direction, DirectionalScan)
        inner, taps = direction.conv_weight.shape
        added = (x.shape[2] + CHUNK - 1) // CHUNK * CHUNK - x.shape[2]
        kernel, padding = direction.conv_weight, (taps - 1, added)
        if reverse:
            kernel, padding = kernel.flip(1), (added, taps - 1)
        u = functional.conv1d(functional.pad(x, padding), kernel[:, None], direction.conv_bias, groups=inner)
        u = u.transpose(1, 2)  # (B, L + added, E)
        # After the transpose, which runtimes would otherwise move into the product and repeat for the scan.
        u = functional.silu(u.flip(1) if reverse else u)
        rank, state = direction.dt_proj.in_features, direction.A_log.shape[1]
        low, B, C = direction.x_proj(u).split([rank, state, state], dim=-1)
        return u, _softplus(direction.dt_proj(low)), B, C


def _softplus(x: Tensor) -> Tensor:
    """The softplus in vectorized operators: onnxruntime's own computes one value at a time, four times as slow."""
    return torch.relu(x) + torch.log(1 + torch.exp(-x.abs()))
