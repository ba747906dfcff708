"""Reads the tensors of a `.pth` file without running what it holds.

Only PyTorch's restricted unpickler is used, never the unsafe one; the zip container is checked before anything
is read from it, because deflated records grow a thousandfold in memory.
"""

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from mambar.errors import CheckpointError

_MOST_RECORDS = 100_000


def read_pickled_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping a released `.pth` holds, tensors on the CPU.

    argparse.Namespace, which the released files carry beside the weights, is admitted as plain data. Raises
    `CheckpointError` for whatever is not a mapping of plain data and tensors.
    """
    _check_container(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "unsafe content"
        raise CheckpointError(f"{path} is refused, it holds more than tensors and plain data: {reason}") from error
    except Exception as error:  # torch.load of damaged files raises many types; all mean the same to a user
        raise CheckpointError(f"{path} is damaged: {type(error).__name__} while reading it.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict.")
    return state


def _check_container(path: Path) -> None:
    """Refuses a file that is no plain zip of stored records whose sizes add up to at most the file's."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as container:
            records = container.infolist()
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint in PyTorch's zip format; save it anew with a current torch.save."
        ) from error
    if len(records) > _MOST_RECORDS:
        raise CheckpointError(f"{path} is refused: {len(records)} records, at most {_MOST_RECORDS} are read.")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path} is refused: it holds compressed records, which checkpoints never have.")
    if sum(record.file_size for record in records) > size:
        raise CheckpointError(f"{path} is refused: its records claim more bytes than the file has.")
