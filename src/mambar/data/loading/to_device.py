"""Copies of tensors between the CPU and another device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. For a CUDA GPU the copy from page-locked memory is asynchronous.

    MPS copies are synchronous: an asynchronous one may read memory that was already freed (pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def start_copy_to_cpu(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory of a tensor on a CUDA GPU; valid only when the work queued so far is done."""
    return tensor.to("cpu", non_blocking=True)
