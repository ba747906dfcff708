"""The causal convolution in Triton: tiles of positions x channels, one shifted load per tap."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambar.ops.triton_launch import run

POSITIONS, CHANNELS = 16, 128


@triton.jit
def _input(x, t, e, valid_e, length, batch_at, x_time, REVERSE: tl.constexpr):
    """x at positions t, counted in scan order; zero outside the sequence."""
    place = length - 1 - t if REVERSE else t
    valid = ((t >= 0) & (t < length))[:, None] & valid_e[None, :]
    return tl.load(x + batch_at + place[:, None] * x_time + e[None, :], mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _preactivation(
    x, weight, bias, t, e, valid_e, length, batch_at, x_time,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The convolution at positions t."""
    total = tl.zeros([t.shape[0], e.shape[0]], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + e, mask=valid_e, other=0.0)[None, :]
    for j in tl.static_range(TAPS):  # type: ignore[attr-defined]
        tap = tl.load(weight + e * TAPS + j, mask=valid_e, other=0.0)
        total += tap[None, :] * _input(x, t - (TAPS - 1 - j), e, valid_e, length, batch_at, x_time, REVERSE)
    return total


@triton.jit
def _forward_kernel(
    x, weight, bias, y,
    length, inner, x_batch, x_time,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid_e = e < inner
    out = _preactivation(x, weight, bias, t, e, valid_e, length, batch * x_batch, x_time, TAPS, HAS_BIAS, REVERSE)
    if SILU:
        out = out / (1.0 + tl.exp(-out))
    place = length - 1 - t if REVERSE else t
    at = (batch * length + place)[:, None] * inner + e[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=(t < length)[:, None] & valid_e[None, :])


@triton.jit
def _backward_kernel(
    dy, x, weight, bias, dx, sums,
    length, inner, dy_batch, dy_time, x_batch, x_time,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    e = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid_e = e < inner
    part = batch * tl.num_programs(1) + tl.program_id(1)
    to = sums + part * inner * (TAPS + 1) + e * (TAPS + 1)
    dx_tile = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    # An input at t contributes to the outputs at t ... t + TAPS - 1; their preactivations are recomputed.
    for k in tl.static_range(TAPS):  # type: ignore[attr-defined]
        flow = _input(dy, t + k, e, valid_e, length, batch * dy_batch, dy_time, REVERSE)
        if SILU:
            before = _preactivation(
                x, weight, bias, t + k, e, valid_e, length, batch * x_batch, x_time, TAPS, HAS_BIAS, REVERSE
            )
            sigmoid = 1.0 / (1.0 + tl.exp(-before))
            flow = flow * (sigmoid * (1.0 + before * (1.0 - sigmoid)))
        dx_tile += tl.load(weight + e * TAPS + (TAPS - 1 - k), mask=valid_e, other=0.0)[None, :] * flow
        if k == 0:
            tl.store(to + TAPS, tl.sum(flow, axis=0), mask=valid_e)
            for j in tl.static_range(TAPS):  # type: ignore[attr-defined]
                held = _input(x, t - (TAPS - 1 - j), e, valid_e, length, batch * x_batch, x_time, REVERSE)
                # Positions beyond the end have gradient 0, but 0 * inf would be NaN.
                own = tl.where((t < length)[:, None], flow * held, 0.0)
                tl.store(to + j, tl.sum(own, axis=0), mask=valid_e)
    place = length - 1 - t if REVERSE else t
    at = (batch * length + place)[:, None] * inner + e[None, :]
    tl.store(dx + at, dx_tile.to(dx.dtype.element_ty), mask=(t < length)[:, None] & valid_e[None, :])


def _options(weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> dict[str, int | bool]:
    sizes = {"TAPS": weight.shape[1], "POSITIONS": POSITIONS, "CHANNELS": CHANNELS}
    return {**sizes, "HAS_BIAS": bias is not None, "SILU": silu, "REVERSE": reverse}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """The convolution, followed by SiLU if `silu`."""
    batch, length, inner = x.shape
    y = torch.empty((batch, length, inner), dtype=x.dtype, device=x.device)
    run(
        *(_forward_kernel, (triton.cdiv(inner, CHANNELS), triton.cdiv(length, POSITIONS), batch), x),
        *(x, weight, weight if bias is None else bias, y, length, inner, x.stride(0), x.stride(1)),
        warps=4,
        **_options(weight, bias, silu, reverse),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    batch, length, inner = x.shape
    taps = weight.shape[1]
    tiles = triton.cdiv(length, POSITIONS)
    dx = torch.empty((batch, length, inner), dtype=x.dtype, device=x.device)
    sums = torch.empty((batch * tiles, inner, taps + 1), dtype=torch.float32, device=x.device)
    run(
        *(_backward_kernel, (triton.cdiv(inner, CHANNELS), tiles, batch), x),
        *(dy, x, weight, weight if bias is None else bias, dx, sums, length, inner),
        *(dy.stride(0), dy.stride(1), x.stride(0), x.stride(1)),
        warps=4,
        **_options(weight, bias, silu, reverse),
    )
    total = sums.sum(dim=0)
    return dx, total[:, :taps].contiguous(), None if bias is None else total[:, taps].contiguous()
