"""The way of a tensor from the CPU to where it is computed with."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; for a CUDA GPU nobody waits, and page-locked memory is copied meanwhile.

    An MPS copy that is not waited for reads memory that may have been freed (pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")
