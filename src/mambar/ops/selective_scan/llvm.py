"""The scan on CPUs as LLVM kernels: channels in vector lanes, time in the inner loop, states in the L1 cache."""

import torch
from torch import Tensor

from mambar.ops.llvm.functions import num_channel_blocks
from mambar.ops.llvm.launch import address, launch, should_stream, strided_arguments, sum_parts
from mambar.ops.llvm.machine import current_machine
from mambar.ops.selective_scan import llvm_backward, llvm_forward
from mambar.ops.selective_scan.llvm_scan_loop import CHECKPOINT_EVERY, padded_to_chunks


def empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) -> list[Tensor]:
    """Empty checkpoints, for the states before every 16th step."""
    batch, length, inner = u.shape
    return [u.new_empty((batch, -(-length // CHECKPOINT_EVERY), A.shape[1], inner), dtype=torch.float32)]


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, *, delta_softplus, reverse, for_backward
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the last state, and the checkpoints for `backward`."""
    y = torch.empty(u.shape, dtype=u.dtype)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32)
    saved = empty_saved(u, delta, A, B, C, D, z, delta_bias, initial_state) if for_backward else []
    machine = current_machine()
    batch, length, inner = u.shape
    # The kernel takes B and C, which are small, as float32.
    B, C = B.float(), C.float()
    launch(
        llvm_forward,
        u.dtype,
        arguments={
            "num_tasks": batch * num_channel_blocks(machine, inner, llvm_forward.VECTORS_PER_BLOCK),
            "length": length,
            "inner": inner,
            "state": A.shape[1],
            "delta_softplus": delta_softplus,
            "streaming": should_stream(machine, y, *saved),
            **strided_arguments(reverse, u=u, delta=delta, z=z, B=B, C=C, y=y),
            "A": address(A),
            "D": address(D),
            "delta_bias": address(delta_bias),
            "initial_state": address(initial_state),
            "last_state": address(last_state),
            "checkpoints": address(saved[0]) if for_backward else 0,
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
    state = A.shape[1]
    size, tasks = llvm_backward.blocks_per_task(machine, batch, inner)
    du, ddelta = (torch.empty(u.shape, dtype=u.dtype) for _ in range(2))
    dz = None if z is None else torch.empty(u.shape, dtype=u.dtype)
    dinitial = None if initial_state is None else torch.empty(initial_state.shape, dtype=torch.float32)
    parameter_parts = torch.empty(batch, state + 2, inner, dtype=torch.float32)
    sequence_parts = torch.empty(tasks, batch, 2, state, padded_to_chunks(length), dtype=torch.float32)
    activations = {"u": u, "delta": delta, "z": z, "B": B.float(), "C": C.float(), "dy": dy}
    gradients = {"du": du, "ddelta": ddelta, "dz": dz}
    launch(
        llvm_backward,
        u.dtype,
        arguments={
            "num_tasks": batch * tasks,
            "blocks_per_task": size,
            "length": length,
            "inner": inner,
            "state": state,
            "batch": batch,
            "delta_softplus": delta_softplus,
            "streaming": should_stream(machine, du, ddelta, dz),
            **strided_arguments(reverse, **activations, **gradients),
            "A": address(A),
            "D": address(D),
            "delta_bias": address(delta_bias),
            "checkpoints": address(saved[0]),
            "dstate": address(dstate),
            "dinitial_state": address(dinitial),
            "parameter_parts": address(parameter_parts),
            "sequence_parts": address(sequence_parts),
        },
        scratch_floats=llvm_backward.scratch_floats(machine, state),
    )
    parameters, sequences = sum_parts(parameter_parts), sum_parts(sequence_parts)
    dB, dC = (to_time_order(part, length, reverse).to(u.dtype) for part in sequences.unbind(1))
    return (
        du,
        ddelta,
        parameters[:state].t().clone(memory_format=torch.contiguous_format),
        dB,
        dC,
        None if D is None else parameters[state].clone(),
        dz,
        None if delta_bias is None else parameters[state + 1].clone(),
        dinitial,
    )


def to_time_order(scanned: Tensor, length: int, reverse: bool) -> Tensor:
    """Converts (batch, state, padded length) in scan order to (batch, length, state) in time order."""
    steps = scanned[..., :length].transpose(1, 2)
    return (steps.flip(1) if reverse else steps).clone(memory_format=torch.contiguous_format)
