"""The mix on a CPU through LLVM: both scans, gate and sum in one pass; projections by the library's products.

For the backward only the step sizes, the low-rank projections and the checkpoints are kept; the convolutions are
made anew.
"""

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix import llvm_backward, llvm_forward
from mambar.ops.bidirectional_mix.direction import Direction
from mambar.ops.causal_conv1d import llvm as convolution
from mambar.ops.llvm.functions import channel_blocks
from mambar.ops.llvm.launch import address, launch, rows, streams, sum_parts
from mambar.ops.llvm.machine import current_machine
from mambar.ops.llvm.products import linear, matmul
from mambar.ops.selective_scan.llvm import in_time
from mambar.ops.selective_scan.llvm_walk import CHECKPOINT_EVERY, padded


def empty_saved(xz: Tensor, ahead: Direction, behind: Direction) -> list[Tensor]:
    """For each direction: the projections to step size, B and C; the step sizes; the checkpoints."""
    batch, length, inner = xz.shape[0], xz.shape[1], ahead.A.shape[0]
    chunks = -(-length // CHECKPOINT_EVERY)
    saved = []
    for way in (ahead, behind):
        saved += [
            xz.new_empty((batch, length, way.x_proj.shape[0])),
            xz.new_empty((batch, length, inner)),
            xz.new_empty((batch, chunks, way.A.shape[1], inner), dtype=torch.float32),
        ]
    return saved


def forward(
    xz: Tensor, ahead: Direction, behind: Direction, *, average: bool, for_backward: bool
) -> tuple[Tensor, list[Tensor]]:
    """The mix, and what `backward` starts from."""
    machine = current_machine()
    x, z = xz.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=xz.dtype)
    batch, length, inner = x.shape
    arguments, u_B_C, saved = {}, [], []
    for name, way, reverse in (("ahead", ahead, False), ("behind", behind, True)):
        u = convolution.forward(x, way.conv_weight, way.conv_bias, silu=True, reverse=reverse)
        projected = linear(u, way.x_proj)
        low, B, C = _split(projected, way)
        delta = linear(low, way.dt_proj)
        kept = (batch, -(-length // CHECKPOINT_EVERY), way.A.shape[1], inner)
        checkpoints = torch.empty(kept, dtype=torch.float32) if for_backward else None
        own = rows(reverse, u=u, delta=delta, z=z, B=B, C=C, out=out) | _parameters(way, checkpoints)
        arguments |= {f"{name}_{argument}": value for argument, value in own.items()}
        # The kernel gets addresses only: all tensors live until it has run.
        u_B_C.append((u, B, C))
        saved += [projected, delta, checkpoints]
    launch(
        llvm_forward,
        xz.dtype,
        arguments=arguments
        | {
            **_sizes(x, llvm_forward.VECTORS_PER_BLOCK, average=average),
            "streaming": streams(machine, out),
            "initial_state": 0,
            "last_state": 0,
        },
        scratch_floats=llvm_forward.scratch_floats(machine, _largest_state(ahead, behind), length),
    )
    return out, saved if for_backward else []


def backward(
    dout: Tensor, xz: Tensor, ahead: Direction, behind: Direction, saved: list[Tensor], *, average: bool
) -> tuple[Tensor, Direction, Direction]:
    """The gradients of xz and of both directions' parameters."""
    machine = current_machine()
    x, z = xz.chunk(2, dim=-1)
    dxz = torch.empty(xz.shape, dtype=xz.dtype)
    dx, dz = dxz.chunk(2, dim=-1)
    ways = [_Backward(x, way, saved[start : start + 3], start > 0) for start, way in ((0, ahead), (3, behind))]
    arguments = {}
    for name, way in zip(("ahead", "behind"), ways, strict=True):
        own = way.arguments() | rows(way.reverse, z=z, dout=dout, dz=dz)
        arguments |= {f"{name}_{argument}": value for argument, value in own.items()}
    launch(
        llvm_backward,
        xz.dtype,
        arguments=arguments
        | {
            **_sizes(x, llvm_backward.VECTORS_PER_BLOCK, average=average),
            "batch": x.shape[0],
            "streaming": streams(machine, *(tensor for way in ways for tensor in (way.du, way.ddelta))),
            "dstate": 0,
            "dinitial_state": 0,
        },
        scratch_floats=llvm_backward.scratch_floats(machine, _largest_state(ahead, behind)),
    )
    dahead, dbehind = (way.finish(dx) for way in ways)
    return dxz, dahead, dbehind


class _Backward:
    """One direction's tensors in the backward: its scan's inputs, made anew or kept, and the gradients."""

    def __init__(self, x: Tensor, way: Direction, saved: list[Tensor], reverse: bool):
        self.x = x
        self.way = way
        self.reverse = reverse
        self.projected, self.delta, self.checkpoints = saved
        self.low, self.B, self.C = _split(self.projected, way)
        self.u = convolution.forward(x, way.conv_weight, way.conv_bias, silu=True, reverse=reverse)
        self.du, self.ddelta = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
        batch, length, inner = x.shape
        state = way.A.shape[1]
        blocks = channel_blocks(current_machine(), inner, llvm_backward.VECTORS_PER_BLOCK)
        self.parameter_parts = torch.empty(batch, state + 2, inner)
        self.sequence_parts = torch.empty(blocks, batch, 2, state, padded(length))

    def arguments(self) -> dict[str, int]:
        """The kernel's arguments of this direction."""
        names = ("u", "delta", "B", "C", "du", "ddelta")
        return {
            **rows(self.reverse, **{name: getattr(self, name) for name in names}),
            **_parameters(self.way, self.checkpoints),
            "parameter_parts": address(self.parameter_parts),
            "sequence_parts": address(self.sequence_parts),
        }

    def finish(self, dx: Tensor) -> Direction:
        """From the scan's gradients to those of the parameters; the part of dx is written, or added when reverse."""
        length, state = self.x.shape[1], self.way.A.shape[1]
        sums, sequences = sum_parts(self.parameter_parts), sum_parts(self.sequence_parts)
        dprojected = torch.empty(self.projected.shape, dtype=self.projected.dtype)
        dlow, dB, dC = dprojected.split([self.low.shape[-1], state, state], dim=-1)
        ddelta = self.ddelta.flatten(0, 1)
        dlow.flatten(0, 1).copy_(matmul(ddelta, self.way.dt_proj))
        for target, part in zip((dB, dC), sequences.unbind(1), strict=True):
            target.copy_(in_time(part, length, self.reverse))
        rows_of_dprojected = dprojected.flatten(0, 1)
        du = self.du.flatten(0, 1)
        du += matmul(rows_of_dprojected, self.way.x_proj)
        way = self.way
        dweight, dbias = convolution.backward_into(
            dx, self.du, self.x, way.conv_weight, way.conv_bias, silu=True, reverse=self.reverse, adds=self.reverse
        )
        return Direction(
            conv_weight=dweight,
            conv_bias=dbias,
            x_proj=matmul(rows_of_dprojected.t(), self.u.flatten(0, 1)),
            dt_proj=matmul(ddelta.t(), self.low.flatten(0, 1)),
            dt_bias=sums[state + 1].clone(),
            A=sums[:state].t().contiguous(),
            D=sums[state].clone(),
        )


def _split(projected: Tensor, way: Direction) -> tuple[Tensor, Tensor, Tensor]:
    """The low rank of the step size, and B and C as float32 (they are small)."""
    rank, state = way.sizes
    low, B, C = projected.split([rank, state, state], dim=-1)
    return low, B.float(), C.float()


def _parameters(way: Direction, checkpoints: Tensor | None) -> dict[str, int]:
    return {
        "state": way.A.shape[1],
        "A": address(way.A),
        "D": address(way.D),
        "delta_bias": address(way.dt_bias),
        "checkpoints": address(checkpoints),
    }


def _sizes(x: Tensor, vectors_per_block: int, *, average: bool) -> dict[str, int]:
    batch, length, inner = x.shape
    return {
        "num_tasks": batch * channel_blocks(current_machine(), inner, vectors_per_block),
        "length": length,
        "inner": inner,
        "delta_softplus": True,
        "average": average,
    }


def _largest_state(ahead: Direction, behind: Direction) -> int:
    return max(ahead.A.shape[1], behind.A.shape[1])
