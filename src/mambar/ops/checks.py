"""Input checks that all ops share: shapes by name, floating-point types."""

from typing import TypeVar

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.ops.dispatch import mode

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What kernels take, with float32 inside.
KERNEL_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Given = TypeVar("Given", bound=Tensor | None)


def check_shape(name: str, tensor: Tensor | None, **sizes: int | None) -> None:
    """Raises unless the tensor is floating and has these sizes in order; None may be any size."""
    if tensor is None:
        return
    check_floating(name, tensor)
    if tensor.dim() != len(sizes):
        raise InputError(f"{name} has {tensor.dim()} dimensions; it needs {len(sizes)}: ({', '.join(sizes)}).")
    for (word, wanted), size in zip(sizes.items(), tensor.shape, strict=True):
        if wanted is not None and size != wanted:
            raise InputError(f"{name} has {word} {size}, the other tensors have {wanted}; make them agree.")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises unless the tensor has one of the types that the ops take."""
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {tensor.dtype}; use float32, bfloat16, float16 or float64.")


def check_device(**tensors: Tensor | None) -> None:
    """Raises unless all tensors lie on one device."""
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    first, *others = given
    for name in others:
        if given[name] != given[first]:
            raise InputError(f"{name} is on {given[name]}, {first} on {given[first]}; move them to one device.")


def check_decay(A: Tensor) -> None:
    """Raises for a positive A, where that neither waits for a GPU nor cuts a graph; NaN is let through."""
    if A.shape[1] == 0:
        raise InputError(f"A has shape {tuple(A.shape)}: no state; give at least one column.")
    looks = mode() == "eager" and A.device.type == "cpu" and type(A) in (Tensor, torch.nn.Parameter)
    if looks and bool((A > 0).any()):
        raise InputError(f"A has a value of {A.max().item():g}; it must not be positive, use -exp(A_log).")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The type of state and sums: float64 as soon as one tensor is float64, else float32."""
    doubles = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if doubles else torch.float32


def common_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The type that all activations fit in."""
    dtype = None
    for tensor in tensors:
        if tensor is not None:
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return dtype or torch.float32


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The type that linear layers compute in on a kind of device under autocast; None without it."""
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # type: ignore[attr-defined]
    return torch.get_autocast_dtype(kind) if casts else None


# As in `dispatch`: Dynamo (of torch 2.11) cannot look into it; a graph is traced again when autocast changes.
autocast_dtype._dynamo_marked_constant = True  # type: ignore[attr-defined]


def as_dtype(tensor: Given, dtype: torch.dtype) -> Given:
    """The tensor in this type; None stays None. Without a need there is no call, which an exported graph would show."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)  # type: ignore[return-value]


def rows(tensor: Tensor) -> Tensor:
    """The tensor with neighbouring channels beside each other in memory, copied only where they are not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
