"""The scan on CPUs as LLVM kernels: channels in vector lanes, time in the inner loop, states in the L1 cache."""

from typing import NamedTuple

import torch
from torch import Tensor

from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import addresses, launch, should_stream, strided_arguments, sum_parts
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan import llvm_backward, llvm_forward
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, padded_to_chunks


class Scan(NamedTuple):
    """Inputs of the scan of one direction, or their gradients.

    u, delta and the gradients of B and C have the dtype of the activations, the others are float32: the kernels take B
    and C, which are small, as float32.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None

    def arguments(self, *, reverse: bool) -> dict[str, int]:
        """The kernel arguments for these tensors, in scan order."""
        rows = strided_arguments(reverse, u=self.u, delta=self.delta, B=self.B, C=self.C)
        return {**rows, "state": self.A.shape[1], **addresses(A=self.A, D=self.D, delta_bias=self.delta_bias)}


class ScanBackward:
    """The backward of one direction: the gradients of u and delta, and the parts of the other gradients."""

    def __init__(self, scan: Scan, *, reverse: bool):
        batch, length, inner = scan.u.shape
        state = scan.A.shape[1]
        self._scan = scan
        self.reverse = reverse
        self.blocks_per_task, self.tasks = llvm_backward.blocks_per_task(current_machine(), batch, inner)
        self.du, self.ddelta = (torch.empty(scan.u.shape, dtype=scan.u.dtype) for _ in range(2))
        self._parameter_parts = torch.empty(batch, state + 2, inner, dtype=torch.float32)
        self._sequence_parts = torch.empty(self.tasks, batch, 2, state, padded_to_chunks(length), dtype=torch.float32)

    def arguments(self) -> dict[str, int]:
        """The kernel arguments for the inputs and these gradients."""
        return {
            **self._scan.arguments(reverse=self.reverse),
            **strided_arguments(self.reverse, du=self.du, ddelta=self.ddelta),
            **addresses(parameter_parts=self._parameter_parts, sequence_parts=self._sequence_parts),
        }

    def gradients(self) -> Scan:
        """The gradients of the inputs, after the kernel has run."""
        length, state, dtype = self._scan.u.shape[1], self._scan.A.shape[1], self._scan.u.dtype
        parameters, sequences = sum_parts(self._parameter_parts), sum_parts(self._sequence_parts)
        dB, dC = (_to_time_order(part, length, self.reverse).to(dtype) for part in sequences.unbind(1))
        dA = parameters[:state].t().clone(memory_format=torch.contiguous_format)
        return Scan(self.du, self.ddelta, dA, dB, dC, parameters[state].clone(), parameters[state + 1].clone())


def empty_checkpoints(u: Tensor, A: Tensor) -> Tensor:
    """Empty checkpoints, for the states before every 16th step."""
    batch, length, inner = u.shape
    return u.new_empty((batch, -(-length // CHECKPOINT_EVERY), A.shape[1], inner), dtype=torch.float32)


def empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) -> list[Tensor]:
    """Empty checkpoints."""
    return [empty_checkpoints(u, A)]


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse, for_backward
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and the checkpoints for `backward`."""
    machine = current_machine()
    batch, length, inner = u.shape
    scan = Scan(u, delta, A, B.float(), C.float(), D, delta_bias)
    y = torch.empty(u.shape, dtype=u.dtype)
    last_state = torch.empty((batch, *A.shape), dtype=torch.float32)
    saved = [empty_checkpoints(u, A)] if for_backward else []
    launch(
        machine,
        llvm_forward,
        u.dtype,
        arguments={
            "num_tasks": batch * num_channel_blocks(machine, inner, llvm_forward.VECTORS_PER_BLOCK),
            "length": length,
            "inner": inner,
            "delta_softplus": delta_softplus,
            "streaming": should_stream(machine, y, *saved),
            **scan.arguments(reverse=reverse),
            **strided_arguments(reverse, z=z, y=y),
            **addresses(initial_state=initial_state, last_state=last_state, checkpoints=saved[0] if saved else None),
        },
        scratch_floats=llvm_forward.scratch_floats(machine, A.shape[1]),
    )
    return y, last_state, saved


def backward(
    dy, dstate, u, delta, A, B, C, D, z, delta_bias, initial_state, saved, *, delta_softplus, reverse
) -> tuple[Tensor | None, ...]:
    """The gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None for arguments that were None."""
    machine = current_machine()
    batch, length, inner = u.shape
    scan = ScanBackward(Scan(u, delta, A, B.float(), C.float(), D, delta_bias), reverse=reverse)
    dz = None if z is None else torch.empty(u.shape, dtype=u.dtype)
    dinitial = None if initial_state is None else torch.empty(initial_state.shape, dtype=torch.float32)
    launch(
        machine,
        llvm_backward,
        u.dtype,
        arguments={
            "num_tasks": batch * scan.tasks,
            "blocks_per_task": scan.blocks_per_task,
            "length": length,
            "inner": inner,
            "batch": batch,
            "delta_softplus": delta_softplus,
            "streaming": should_stream(machine, scan.du, scan.ddelta, dz),
            **scan.arguments(),
            **strided_arguments(reverse, z=z, dy=dy, dz=dz),
            **addresses(checkpoints=saved[0], dstate=dstate, dinitial_state=dinitial),
        },
        scratch_floats=llvm_backward.scratch_floats(machine, A.shape[1]),
    )
    du, ddelta, dA, dB, dC, dD, dbias = scan.gradients()
    return (
        *(du, ddelta, dA, dB, dC, None if D is None else dD, dz),
        *(None if delta_bias is None else dbias, dinitial),
    )


def _to_time_order(scanned: Tensor, length: int, reverse: bool) -> Tensor:
    """Converts (batch, state, padded length) in scan order to (batch, length, state) in time order."""
    steps = scanned[..., :length].transpose(1, 2)
    return (steps.flip(1) if reverse else steps).clone(memory_format=torch.contiguous_format)
