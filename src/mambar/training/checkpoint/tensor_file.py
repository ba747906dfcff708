"""Tensors as a streamed safetensors file, so that a large state is not held in memory twice."""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from mambar.atomic_files import CHUNK_BYTES
from mambar.hub.safetensors_file import DTYPES

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def tensor_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The content of the file: the header, then the bytes of each tensor, which are read when they are asked for."""
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # In this format the data begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in header:
        values: Any = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        raw = memoryview(values)
        for start in range(0, len(raw), CHUNK_BYTES):
            yield raw[start : start + CHUNK_BYTES]
