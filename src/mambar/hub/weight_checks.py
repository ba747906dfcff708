"""Checks of untrusted weights and configurations before a model is built from them."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mambar.errors import CheckpointError, InputError
from mambar.messages import one_line

_MAX_NAME_LENGTH = 200
_CHUNK = 1 << 22


def check_weights(state: Mapping[str, Tensor], *, origin: Path | str) -> None:
    """Raises `CheckpointError` for the first tensor that is not dense, on the CPU, floating-point and finite.

    A view with more elements than its storage (one number expanded to a terabyte) is refused before it is read.
    """
    memory: dict[int, int] = {}
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
            raise CheckpointError(
                f"{origin} has the parameter name {name[:_MAX_NAME_LENGTH]!r}, which is too long or not printable."
            )
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{origin}: {name} is not a dense CPU tensor.")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{origin}: {name} has dtype {tensor.dtype}; weights must be floating-point.")
        storage = tensor.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
    size, stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), sum(memory.values())
    if size > stored:
        raise CheckpointError(f"{origin} is refused: its tensors claim {size} bytes, their storages have {stored}.")
    bad = first_non_finite(state)
    if bad is not None:
        raise CheckpointError(f"{origin}: {bad} holds NaN or Inf; use another checkpoint.")


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating-point tensor with NaN or Inf, or None; checked in chunks to save memory."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        for chunk in tensor.detach().reshape(-1).split(_CHUNK):
            if not bool(torch.isfinite(chunk).all()):
                return name
    return None


@contextlib.contextmanager
def as_checkpoint_error(origin: Path | str) -> Iterator[None]:
    """A context in which any error of reading a configuration is raised as a one-line `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{origin}: {one_line(str(error), limit=300)}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(str(error), limit=120)
        raise CheckpointError(
            f"{origin} is not a valid model configuration: {type(error).__name__}: {reason}"
        ) from error
