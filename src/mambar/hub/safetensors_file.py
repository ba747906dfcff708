"""Reads untrusted safetensors files.

The layout: eight bytes with the length of a JSON header, the header (name → dtype, shape, data_offsets), then the
tensors without gaps. The safetensors library is not used for reading: `load` copies every tensor beside the whole file
and parses headers of 100 MB, and `safe_open` maps the file again after its checksum was computed. Files that the
library refuses are refused here too (tested on mutants).
"""

import hashlib
import json
import math
import os
import stat
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambar.errors import CheckpointError
from mambar.hub.config_file import unique_keys
from mambar.messages import one_line

# The header of Large has 130 kB.
MAX_HEADER_BYTES = 4_000_000

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file, verified against `sha256` if it is given; they share one buffer.

    Raises `CheckpointError` for anything but an intact safetensors file.
    """
    buffer = _bytes_of(path)
    if sha256 is not None:
        actual = hashlib.sha256(buffer).hexdigest()
        if actual != sha256:
            raise CheckpointError(f"{path} is damaged: sha256 is {actual}, expected {sha256}.")
    try:
        return _tensors(buffer)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _bytes_of(path: Path) -> bytearray:
    try:
        # Checked before opening, because opening a pipe waits for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no regular file; give the path of a .safetensors file.")
        with path.open("rb") as file:
            buffer = bytearray(os.fstat(file.fileno()).st_size)
            if file.readinto(buffer) != len(buffer) or file.read(1):
                raise CheckpointError(f"{path} changed while it was read; try again.")
            return buffer
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _tensors(buffer: bytearray) -> dict[str, Tensor]:
    if len(buffer) < 8:
        raise CheckpointError(f"it has {len(buffer)} bytes.")
    (length,) = struct.unpack_from("<Q", buffer)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed.")
    start = 8 + length
    if start > len(buffer):
        raise CheckpointError(f"its header claims {length} bytes, the file has {len(buffer)}.")
    entries = _header(bytes(buffer[8:start]))
    found: dict[str, Tensor] = {}
    end = 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if begin != end:
            raise CheckpointError(f"{one_line(name)} begins at byte {begin}, the tensor before it ends at {end}.")
        end = stop
        found[name] = _tensor(buffer, start + begin, stop - begin, dtype, shape)
    if start + end != len(buffer):
        raise CheckpointError(f"its tensors end at byte {start + end}, the file at {len(buffer)}.")
    return {name: found[name] for name in entries}


Entry = tuple[torch.dtype, list[int], int, int]


def _header(text: bytes) -> dict[str, Entry]:
    if not text.startswith(b"{"):
        raise CheckpointError("its header does not begin with '{'.")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not a JSON object: {str(error)[:100]!r}.") from error
    entries: dict[str, Entry] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise CheckpointError("its metadata are not strings.")
            continue
        entries[name] = _entry(name, entry)
    return entries


def _entry(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{one_line(name)} must have dtype, shape and data_offsets.")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise CheckpointError(f"{one_line(name)} has dtype {str(kind)[:20]!r}; choose from {', '.join(DTYPES)}.")
    if not _is_sizes(shape) or len(shape) > 64 or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{one_line(name)} has an invalid shape or data_offsets.")
    begin, stop = offsets
    # torch computes strides of empty tensors too, which overflow for a shape such as [0, 2^62, 2^62].
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 1 << 63:
        raise CheckpointError(f"{one_line(name)} of shape {str(shape)[:60]} is too large.")
    if stop - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{one_line(name)} of shape {str(shape)[:60]} does not fit its {stop - begin} bytes.")
    return dtype, shape, begin, stop


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _tensor(buffer: bytearray, begin: int, size: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if begin + size > len(buffer):
        raise CheckpointError(f"it is truncated: byte {begin + size} is claimed, the file has {len(buffer)}.")
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    if begin % dtype.itemsize:
        return torch.frombuffer(bytearray(buffer[begin : begin + size]), dtype=dtype).reshape(shape)
    return torch.frombuffer(buffer, dtype=dtype, count=size // dtype.itemsize, offset=begin).reshape(shape)
