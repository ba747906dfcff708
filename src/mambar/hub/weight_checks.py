"""What weights must be before a model is built from them: plain, real, finite, and with names one can print."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mambar.errors import CheckpointError, InputError

_LONGEST_NAME = 200
_PIECE = 1 << 22


def check_weights(state: Mapping[str, Tensor], *, origin: Path | str) -> None:
    """Raises `CheckpointError` naming the first tensor that is not what weights are.

    Weights are plain tensors in main memory, of a floating type, finite. A view that shows more values than the
    file holds (one number expanded to a terabyte) is refused before anything is computed from it.
    """
    memory: dict[int, int] = {}
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise CheckpointError(f"{origin} holds the name {name[:_LONGEST_NAME]!r}, which no parameter has.")
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{origin}: {name} is no plain tensor in main memory.")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{origin}: {name} has dtype {tensor.dtype}; weights are floating-point numbers.")
        storage = tensor.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
    shown = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if shown > sum(memory.values()):
        raise CheckpointError(f"{origin} is refused: its tensors claim {shown} bytes, it holds {sum(memory.values())}.")
    bad = first_non_finite(state)
    if bad is not None:
        raise CheckpointError(f"{origin}: {bad} holds NaN or Inf; use another checkpoint.")


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating tensor that holds NaN or Inf, or None; looks at pieces, to save memory."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        for piece in tensor.detach().reshape(-1).split(_PIECE):
            if not bool(torch.isfinite(piece).all()):
                return name
    return None


@contextlib.contextmanager
def as_checkpoint_error(origin: Path | str) -> Iterator[None]:
    """Whatever goes wrong inside while a description is read becomes one line of `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{origin}: {shortened(str(error), 300)}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = shortened(str(error), 120)
        raise CheckpointError(f"{origin} describes no model: {type(error).__name__}: {reason}") from error


def shortened(text: str, limit: int) -> str:
    """The text as one printable line of at most `limit` letters, cut in the middle."""
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    return line if len(line) <= limit else f"{line[: limit // 2 - 1]}…{line[-limit // 2 :]}"
