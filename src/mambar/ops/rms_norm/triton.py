"""RMS normalization in Triton: a program processes some rows in registers and moves every byte once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambar.ops.triton_launch import run

# Values per program and step: more rows of a narrow matrix than of a wide one.
VALUES_PER_STEP = 2048
ROWS_PER_PROGRAM = 32


@triton.jit
def _forward_kernel(
    x, residual, weight, normed, total, inverse_rms,
    rows, eps, x_row, residual_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    valid = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row[:, None] * WIDTH + column[None, :]
    value = tl.load(x + row[:, None] * x_row + column[None, :], mask=valid, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(residual + row[:, None] * residual_row + column[None, :], mask=valid, other=0.0).to(tl.float32)
        tl.store(total + at, value.to(total.dtype.element_ty), mask=valid)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / WIDTH + eps)
    tl.store(inverse_rms + row, inverse, mask=row < rows)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0)
    tl.store(normed + at, (value * inverse[:, None] * scale[None, :]).to(normed.dtype.element_ty), mask=valid)


@triton.jit
def _backward_kernel(
    dnormed, dtotal, total, weight, inverse_rms, gradient, weight_sums,
    rows, dnormed_row, dtotal_row, total_row,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, TURNS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    scale = tl.load(weight + column, mask=inside, other=0.0)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0).to(tl.int64) * (AT_ONCE * TURNS)
    for turn in range(TURNS):
        row = first + turn * AT_ONCE + tl.arange(0, AT_ONCE)
        valid = (row < rows)[:, None] & inside[None, :]
        grad = tl.load(dnormed + row[:, None] * dnormed_row + column[None, :], mask=valid, other=0.0).to(tl.float32)
        value = tl.load(total + row[:, None] * total_row + column[None, :], mask=valid, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_rms + row, mask=row < rows, other=0.0)
        unit = value * inverse[:, None]
        weight_sum += tl.sum(grad * unit, axis=0)
        grad *= scale[None, :]
        along = tl.sum(grad * unit, axis=1) / WIDTH
        found = inverse[:, None] * (grad - unit * along[:, None])
        if ADDS:
            found += tl.load(dtotal + row[:, None] * dtotal_row + column[None, :], mask=valid, other=0.0).to(tl.float32)
        at = row[:, None] * WIDTH + column[None, :]
        tl.store(gradient + at, found.to(gradient.dtype.element_ty), mask=valid)
    tl.store(weight_sums + tl.program_id(0).to(tl.int64) * WIDTH + column, weight_sum, mask=inside)


def _sizes(width: int) -> tuple[int, int, int]:
    block = triton.next_power_of_2(width)
    at_once = max(1, min(16, VALUES_PER_STEP // block))
    return block, at_once, max(4, min(16, block * at_once // 1024))


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized sum in `dtype`, the sum in the dtype of the residual, and 1 / rms of each row."""
    rows, width = x.shape
    normed = torch.empty((rows, width), dtype=dtype, device=x.device)
    total = x.new_empty(0) if residual is None else residual.new_empty((rows, width))
    inverse_rms = torch.empty(rows, dtype=torch.float32, device=x.device)
    block, at_once, warps = _sizes(width)
    run(
        *(_forward_kernel, (triton.cdiv(rows, at_once),), x),
        *(x, x if residual is None else residual, weight, normed, total, inverse_rms, rows, eps),
        *(x.stride(0), 0 if residual is None else residual.stride(0)),
        warps=warps,
        WIDTH=width,
        BLOCK=block,
        AT_ONCE=at_once,
        ADDS=residual is not None,
    )
    return normed, total, inverse_rms


def backward(
    dnormed: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, inverse_rms: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradient of the sum in its dtype, and that of the weight."""
    rows, width = total.shape
    block, at_once, warps = _sizes(width)
    turns = max(1, ROWS_PER_PROGRAM // at_once)
    programs = triton.cdiv(rows, at_once * turns)
    gradient = torch.empty((rows, width), dtype=total.dtype, device=total.device)
    weight_sums = torch.empty((programs, width), dtype=torch.float32, device=total.device)
    run(
        *(_backward_kernel, (programs,), total),
        *(dnormed, dnormed if dtotal is None else dtotal, total, weight, inverse_rms, gradient, weight_sums, rows),
        *(dnormed.stride(0), 0 if dtotal is None else dtotal.stride(0), total.stride(0)),
        warps=warps,
        WIDTH=width,
        BLOCK=block,
        AT_ONCE=at_once,
        TURNS=turns,
        ADDS=dtotal is not None,
    )
    return gradient, weight_sums.sum(dim=0)
