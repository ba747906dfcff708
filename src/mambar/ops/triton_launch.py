"""Launches a Triton kernel on the device of its tensors: a GPU, or the CPU in Triton's interpreter."""

import contextlib
from typing import Any

import torch
from torch import Tensor


def run(kernel: Any, grid: tuple[int, ...], near: Tensor, *arguments: Any, warps: int, **constants: int | bool) -> None:
    """Runs `kernel` on the device of `near`. Fused multiply-add is set explicitly, because Triton's default changes."""
    with torch.cuda.device(near.device) if near.is_cuda else contextlib.nullcontext():
        kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
