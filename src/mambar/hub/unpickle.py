"""Reads `.pth` files without executing pickled code.

Files are loaded with `weights_only=True`. The zip container is checked first, because a compressed record can
expand a thousandfold in memory.
"""

import argparse
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mambar.errors import CheckpointError
from mambar.messages import one_line

# A checkpoint of Large with its optimizer has about 3,000 records of 100 bytes each in the directory.
_MAX_DIRECTORY_BYTES = 2_000_000
_MAX_PICKLE_BYTES = 64_000_000

# End-of-central-directory record of a zip file, and the locator and record of its 64-bit extension.
_END, _LOCATOR, _END64 = "<4s4H2LH", "<4sLQL", "<4sQ2H2L4Q"


def read_pickled_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary stored in a `.pth` file, with tensors on the CPU.

    argparse.Namespace, which the released files contain, is allowed. Raises `CheckpointError` for a damaged file
    and for anything but a dictionary of tensors and plain data.
    """
    _check_container(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # torch warns about pickles that are refused below anyway.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises many types of errors for damaged and hostile files.
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain data: {_reason(error)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict.")
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} has keys that are not strings; it is not a state dict.")
    return state


def _reason(error: Exception) -> str:
    """The first line of torch's error; later lines advise `weights_only=False`."""
    lines = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line] or [str(error)]
    return f"{type(error).__name__}: {one_line(lines[0], limit=120)}"


def _check_container(path: Path) -> None:
    """Raises `CheckpointError` unless the file is a zip of uncompressed records that fit into the file."""
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            directory = _directory_bytes(file, size)
            if directory > _MAX_DIRECTORY_BYTES:
                raise CheckpointError(f"{path} is refused: its directory of records claims {directory} bytes.")
            with zipfile.ZipFile(file) as container:
                records = container.infolist()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint in PyTorch's zip format; save it again with a current torch.save."
        ) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path} is refused: it has compressed records, which torch.save never writes.")
    if sum(max(record.file_size, record.compress_size) for record in records) > size:
        raise CheckpointError(f"{path} is refused: its records claim more bytes than the file has.")
    if any(record.file_size > _MAX_PICKLE_BYTES for record in records if record.filename.endswith("/data.pkl")):
        raise CheckpointError(f"{path} is refused: the pickle of its tensors is larger than {_MAX_PICKLE_BYTES} bytes.")


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """The size of the zip's central directory as its end records claim it, before any record is parsed."""
    tail_size = min(size, 65_535 + struct.calcsize(_END) + struct.calcsize(_LOCATOR))
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    claims = []
    # zipfile uses the end record without a comment, else the last signature of one.
    for offset in {len(tail) - struct.calcsize(_END), tail.rfind(b"PK\5\6")}:
        if offset < 0 or tail[offset : offset + 4] != b"PK\5\6" or offset + struct.calcsize(_END) > len(tail):
            continue
        claims.append(struct.unpack_from(_END, tail, offset)[5])
        locator = offset - struct.calcsize(_LOCATOR)
        if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
            file.seek(min(struct.unpack_from(_LOCATOR, tail, locator)[2], size))
            end64 = file.read(struct.calcsize(_END64))
            if len(end64) == struct.calcsize(_END64):
                claims.append(struct.unpack(_END64, end64)[8])
    # 0xFFFFFFFF refers to the 64-bit record, which is in the list.
    claims = [claim for claim in claims if claim != 0xFFFFFFFF]
    if not claims:
        raise ValueError("no end-of-central-directory record")
    return max(claims)
