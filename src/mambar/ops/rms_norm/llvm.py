"""Launch of the LLVM kernel of the RMS norm."""

import struct

import torch
from torch import Tensor

from mambar.ops.llvm.launch import addresses, launch
from mambar.ops.llvm.machine import current_machine
from mambar.ops.rms_norm import llvm_norm


def normalize(x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum, or of x, and x; all in float32."""
    x, weight = x.contiguous(), weight.contiguous()
    normed, total = torch.empty(x.shape, dtype=x.dtype), None
    if residual is not None:
        residual, total = residual.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    dim = x.shape[-1]
    rows = x.numel() // dim
    arguments = {
        "num_tasks": -(-rows // llvm_norm.ROWS_PER_TASK),
        "rows": rows,
        "dim": dim,
        "eps": struct.unpack("i", struct.pack("f", eps))[0],
        **addresses(x=x, residual=residual, weight=weight, total=total, normed=normed),
    }
    launch(current_machine(), llvm_norm, x.dtype, arguments=arguments)
    return normed, x if total is None else total
