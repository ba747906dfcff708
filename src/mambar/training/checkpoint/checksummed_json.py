"""JSON documents that carry the sha256 of their own canonical text, so that any changed byte is detected.

Needs no torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambar.errors import CheckpointError
from mambar.json_fields import check_format_version


def dumps(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON text of `body` with its own sha256."""
    return _canonical({**body, "sha256": body_sha256(body)})


def body_sha256(body: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON text of `body`."""
    return hashlib.sha256(_canonical(body)).hexdigest()


def loads(data: bytes, *, source: Path, newest_format: int) -> dict[str, Any]:
    """The body of a document of `dumps`; CheckpointError if a byte was changed or the format is newer."""
    try:
        document = json.loads(data)
        expected = document.pop("sha256")
        version = document["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{source} is damaged: {len(data)} bytes without a valid checksum.") from None
    found = body_sha256(document)
    if found != expected or _canonical({**document, "sha256": expected}) != data:
        raise CheckpointError(f"{source} is damaged: sha256 expected {expected}, found {found}.")
    check_format_version(version, source, newest=newest_format)
    return document


def verify_file(path: Path, *, size: int, sha256: str) -> None:
    """Raises CheckpointError, with what was expected and found, unless `path` has this size and sha256."""
    try:
        found_size = path.stat().st_size
        if found_size != size:
            raise CheckpointError(f"{path} is damaged: {size} bytes expected, found {found_size}.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}.") from None
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: sha256 expected {sha256}, found {digest.hexdigest()}.")


def _canonical(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()
