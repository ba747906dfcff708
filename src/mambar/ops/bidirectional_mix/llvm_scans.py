"""Launches of the fused LLVM kernels for both scans, the gate and the sum."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambar.ops.bidirectional_mix import llvm_backward, llvm_forward
from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import address, launch, should_stream, strided_arguments, sum_parts
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan import llvm_backward as scan_backward
from mambar.ops.selective_scan.llvm import to_time_order
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, padded_to_chunks


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Inputs of the scan of one direction, or their gradients.

    u and delta have the dtype of the activations, the gradients of B and C too, the others are float32.
    """

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    D: Tensor
    delta_bias: Tensor

    def arguments(self, *, reverse: bool) -> dict[str, int]:
        """The kernel arguments for these tensors, in scan order."""
        return {
            **strided_arguments(reverse, u=self.u, delta=self.delta, B=self.B, C=self.C),
            "state": self.A.shape[1],
            "A": address(self.A),
            "D": address(self.D),
            "delta_bias": address(self.delta_bias),
        }

    def empty_checkpoints(self) -> Tensor:
        """Empty checkpoints, for the states before every 16th step."""
        batch, length, inner = self.u.shape
        return torch.empty(batch, -(-length // CHECKPOINT_EVERY), self.A.shape[1], inner, dtype=torch.float32)


def scan_both(
    z: Tensor, forward_scan: Scan, backward_scan: Scan, checkpoints: tuple[Tensor, Tensor] | None, *, average: bool
) -> Tensor:
    """The sum of both scans, or their mean, times silu(z); fills the checkpoints if given."""
    out = torch.empty(z.shape, dtype=z.dtype)
    kept = checkpoints or (None, None)
    own = [
        scan.arguments(reverse=reverse) | strided_arguments(reverse, z=z, out=out) | {"checkpoints": address(states)}
        for scan, states, reverse in zip((forward_scan, backward_scan), kept, (False, True), strict=True)
    ]
    num_tasks = z.shape[0] * num_channel_blocks(current_machine(), z.shape[2], llvm_forward.VECTORS_PER_BLOCK)
    arguments = _arguments(z, num_tasks, own, average=average)
    largest = max(forward_scan.A.shape[1], backward_scan.A.shape[1])
    launch(
        llvm_forward,
        z.dtype,
        arguments=arguments | {"streaming": should_stream(current_machine(), out), "initial_state": 0, "last_state": 0},
        scratch_floats=llvm_forward.scratch_floats(current_machine(), largest, z.shape[1]),
    )
    return out


def scan_both_backward(
    dout: Tensor,
    z: Tensor,
    dz: Tensor,
    forward_scan: Scan,
    backward_scan: Scan,
    checkpoints: tuple[Tensor, Tensor],
    *,
    average: bool,
) -> tuple[Scan, Scan]:
    """The gradients of both scans; that of the gate is stored to dz."""
    scans = [
        _Backward(scan, states, reverse)
        for scan, states, reverse in zip((forward_scan, backward_scan), checkpoints, (False, True), strict=True)
    ]
    own = [scan.arguments() | strided_arguments(scan.reverse, z=z, dout=dout, dz=dz) for scan in scans]
    size, tasks = scan_backward.blocks_per_task(current_machine(), z.shape[0], z.shape[2])
    arguments = _arguments(z, z.shape[0] * tasks, own, average=average)
    results = [tensor for scan in scans for tensor in (scan.du, scan.ddelta)]
    largest = max(forward_scan.A.shape[1], backward_scan.A.shape[1])
    launch(
        llvm_backward,
        z.dtype,
        arguments=arguments
        | {
            "batch": z.shape[0],
            "blocks_per_task": size,
            "streaming": should_stream(current_machine(), *results),
            "dstate": 0,
            "dinitial_state": 0,
        },
        scratch_floats=llvm_backward.scratch_floats(current_machine(), largest),
    )
    return scans[0].gradients(), scans[1].gradients()


class _Backward:
    """The backward of one direction: its scan, and buffers for its gradients and their parts."""

    def __init__(self, scan: Scan, checkpoints: Tensor, reverse: bool):
        self.scan = scan
        self.checkpoints = checkpoints
        self.reverse = reverse
        batch, length, inner = scan.u.shape
        state = scan.A.shape[1]
        _, tasks = scan_backward.blocks_per_task(current_machine(), batch, inner)
        self.du, self.ddelta = (torch.empty(scan.u.shape, dtype=scan.u.dtype) for _ in range(2))
        self.parameter_parts = torch.empty(batch, state + 2, inner, dtype=torch.float32)
        self.sequence_parts = torch.empty(tasks, batch, 2, state, padded_to_chunks(length), dtype=torch.float32)

    def arguments(self) -> dict[str, int]:
        return {
            **self.scan.arguments(reverse=self.reverse),
            **strided_arguments(self.reverse, du=self.du, ddelta=self.ddelta),
            "checkpoints": address(self.checkpoints),
            "parameter_parts": address(self.parameter_parts),
            "sequence_parts": address(self.sequence_parts),
        }

    def gradients(self) -> Scan:
        length, state, dtype = self.scan.u.shape[1], self.scan.A.shape[1], self.scan.u.dtype
        sums, sequences = sum_parts(self.parameter_parts), sum_parts(self.sequence_parts)
        dB, dC = (to_time_order(part, length, self.reverse).to(dtype) for part in sequences.unbind(1))
        return Scan(
            u=self.du,
            delta=self.ddelta,
            B=dB,
            C=dC,
            A=sums[:state].t().clone(memory_format=torch.contiguous_format),
            D=sums[state].clone(),
            delta_bias=sums[state + 1].clone(),
        )


def _arguments(z: Tensor, num_tasks: int, own: list[dict[str, int]], *, average: bool) -> dict[str, int]:
    """The arguments of both kernels; the names of those that each direction has of its `own` get its prefix."""
    sizes = {"num_tasks": num_tasks, "length": z.shape[1], "inner": z.shape[2]}
    named = zip(("forward", "backward"), own, strict=True)
    directions = {f"{direction}_{name}": value for direction, values in named for name, value in values.items()}
    return {**sizes, "delta_softplus": True, "average": average, **directions}
