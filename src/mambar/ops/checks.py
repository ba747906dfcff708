"""Checks and type conversions that all ops share."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mambar.errors import InputError
from mambar.ops.dispatch import FLOATS, mode, resolve

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
    """Raises unless all tensors are on one device."""
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    first, *others = given
    for name in others:
        if given[name] != given[first]:
            raise InputError(f"{name} is on {given[name]}, {first} on {given[first]}; move them to one device.")


def check_decay(A: Tensor) -> None:
    """Raises for a positive A in eager mode on a CPU, where reading the values is cheap; accepts NaN."""
    if A.shape[1] == 0:
        raise InputError(f"A has shape {tuple(A.shape)}: no state; give at least one column.")
    readable = mode() == "eager" and A.device.type == "cpu" and type(A) in (Tensor, torch.nn.Parameter)
    if readable and bool((A > 0).any()):
        raise InputError(f"A has a value of {A.max().item():g}; it must not be positive, use -exp(A_log).")


def find_float64(names: Iterable[str], tensors: Iterable[Tensor | None]) -> str | None:
    """The name of the first float64 tensor; None if there is none."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None and tensor.dtype == torch.float64:
            return name
    return None


def compute_dtype(float64: str | None) -> torch.dtype:
    """The type of the state and of sums: float64 if `find_float64` found an argument, else float32."""
    return torch.float32 if float64 is None else torch.float64


def choose_backend(
    op: str, asked: str, activations: Sequence[str], tensors: Mapping[str, Tensor | None]
) -> tuple[str, list[Any]]:
    """The backend for tensors on one device, and the tensors in the types it takes.

    The `activations` are promoted to their common type; the other tensors are float32, or all are float64 if one is.
    """
    check_device(**tensors)
    float64 = find_float64(tensors, tensors.values())
    wide = compute_dtype(float64)
    given: list[Any] = [tensors[name] for name in activations if tensors[name] is not None]
    dtype = wide if float64 else functools.reduce(torch.promote_types, [tensor.dtype for tensor in given])
    name = resolve(op, asked, device=given[0].device, dtype=dtype, float64=float64)
    return name, [as_dtype(t, dtype if key in activations else wide) for key, t in tensors.items()]


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The type that linear layers compute in on this device type under autocast; None without autocast."""
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # type: ignore[attr-defined]
    return torch.get_autocast_dtype(kind) if casts else None


# See `dispatch`: Dynamo of torch 2.11 cannot trace it; a graph is traced again when autocast changes.
autocast_dtype._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_kernel_dtypes(tensors: Mapping[str, Tensor | None], activations: Sequence[str]) -> None:
    """Raises unless a kernel can read these: activations of the first one's type, others float32 (float64 with it)."""
    dtype = next(iter(tensors.values())).dtype  # type: ignore[union-attr]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in tensors.items():
        wanted = dtype if name in activations else wide
        if tensor is not None and tensor.dtype != wanted:
            raise TypeError(f"{name} has dtype {tensor.dtype}; a kernel reads {wanted} here, cast it first.")


def as_dtype(tensor: Given, dtype: torch.dtype) -> Given:
    """The tensor in this type; None stays None. No call if it has the type, so that an exported graph has no node."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)  # type: ignore[return-value]


def rows(tensor: Given) -> Given:
    """The tensor with stride 1 over channels, copied only if it has another stride; None stays None."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()  # type: ignore[return-value]


def contiguous(tensor: Given) -> Given:
    """The tensor in contiguous memory; None stays None."""
    return None if tensor is None else tensor.contiguous()  # type: ignore[return-value]
