"""Reads the tensors of a `.pth` file without running what it holds.

Only PyTorch's restricted unpickler is used, never the unsafe one; the zip container is checked before anything
is read from it, because deflated records grow a thousandfold in memory.
"""

import argparse
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mambar.errors import CheckpointError
from mambar.hub.weight_checks import shortened

# Large with its optimizer has some three thousand records of about a hundred bytes each in the directory.
_MOST_DIRECTORY_BYTES = 2_000_000
_MOST_PICKLE_BYTES = 64_000_000

# Ends of a zip file: the record every zip has, and the locator and record of the 64-bit extension before it.
_END, _LOCATOR, _END64 = "<4s4H2LH", "<4sLQL", "<4sQ2H2L4Q"


def read_pickled_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping a released `.pth` holds, tensors on the CPU.

    argparse.Namespace, which the released files carry beside the weights, is admitted as plain data. Raises
    `CheckpointError` for whatever is not a mapping of plain data and tensors.
    """
    _check_container(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # torch warns of what is refused or plain here.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises many types for damaged and hostile files; to a user all mean the same.
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain data: {_reason(error)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict.")
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} holds entries whose names are no texts; it is no state dict.")
    return state


def _reason(error: Exception) -> str:
    """One printable line of what torch says; what follows its first line advises the unsafe way."""
    lines = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line] or [str(error)]
    return f"{type(error).__name__}: {shortened(lines[0], 120)}"


def _check_container(path: Path) -> None:
    """Refuses a file that is no plain zip of stored records whose sizes add up to at most the file's."""
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            directory = _directory_bytes(file, size)
            if directory > _MOST_DIRECTORY_BYTES:
                raise CheckpointError(f"{path} is refused: its directory of records claims {directory} bytes.")
            with zipfile.ZipFile(file) as container:
                records = container.infolist()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is no checkpoint in PyTorch's zip format; save it anew with a current torch.save."
        ) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path} is refused: it holds compressed records, which checkpoints never have.")
    if sum(max(record.file_size, record.compress_size) for record in records) > size:
        raise CheckpointError(f"{path} is refused: its records claim more bytes than the file has.")
    if any(record.file_size > _MOST_PICKLE_BYTES for record in records if record.filename.endswith("/data.pkl")):
        raise CheckpointError(
            f"{path} is refused: what describes its tensors is larger than {_MOST_PICKLE_BYTES} bytes."
        )


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """The size of the zip's directory as its ends claim it, known before a reader makes objects of the records."""
    tail_size = min(size, 65_535 + struct.calcsize(_END) + struct.calcsize(_LOCATOR))
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    claims = []
    # Readers take the end record without a comment, else the last mark of one.
    for place in {len(tail) - struct.calcsize(_END), tail.rfind(b"PK\5\6")}:
        if place < 0 or tail[place : place + 4] != b"PK\5\6" or place + struct.calcsize(_END) > len(tail):
            continue
        claims.append(struct.unpack_from(_END, tail, place)[5])
        locator = place - struct.calcsize(_LOCATOR)
        if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
            file.seek(min(struct.unpack_from(_LOCATOR, tail, locator)[2], size))
            end64 = file.read(struct.calcsize(_END64))
            if len(end64) == struct.calcsize(_END64):
                claims.append(struct.unpack(_END64, end64)[8])
    # 0xFFFFFFFF sends the reader to the 64-bit record, which is among the claims.
    claims = [claim for claim in claims if claim != 0xFFFFFFFF]
    if not claims:
        raise ValueError("no end of a zip file")
    return max(claims)
