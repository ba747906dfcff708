"""Tensors as a streamed safetensors file, so that a large state is not held in memory twice."""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from mambar.training.checkpoint.atomic_files import CHUNK_BYTES, FileDigest, Payload

_TYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorPayload(Payload):
    """Named tensors: the header is made at once, the bytes of the tensors are read when they are written."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(sorted(tensors.items()))
        header: dict[str, Any] = {}
        offset = 0
        for name, tensor in self.tensors.items():
            end = offset + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # In this format the data begin at a multiple of eight bytes.
        super().__init__(struct.pack("<Q", len(text) + -len(text) % 8) + text + b" " * (-len(text) % 8))
        self.tensor_bytes = offset

    @property
    def size(self) -> int:
        """Size in bytes, header included."""
        return len(self.data) + self.tensor_bytes

    def chunks(self, written: Mapping[str, FileDigest]) -> Iterator[bytes | memoryview]:
        """The header, then the bytes of each tensor."""
        yield self.data
        for tensor in self.tensors.values():
            if tensor.numel() == 0:
                continue
            numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            raw = memoryview(numbers)
            for start in range(0, len(raw), CHUNK_BYTES):
                yield raw[start : start + CHUNK_BYTES]
