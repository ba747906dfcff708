"""Checkpoints: a directory a step, checksummed, published atomically; damaged ones are kept and passed over.

    checkpoints/step-00000120/state.safetensors   tensors: model.*, ema.*, optimizer.*
    checkpoints/step-00000120/state.json          scalars, and size and sha256 of the file beside it; sealed
    checkpoints/last.json, best.json              which one, and the sha256 of its state.json; sealed

`last.json` is replaced once its directory is complete on the disk, and older directories go only after that.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from mambar.errors import CheckpointError, NonFiniteError
from mambar.training.checkpoint import atomic_files, checksummed_json
from mambar.training.checkpoint.tensor_file import TensorPayload

CHECKPOINT_FORMAT: Final = 1
_LOG = logging.getLogger("mambar.training.checkpoint.store")
_TENSORS, _SCALARS = "state.safetensors", "state.json"
_NAME: Final = re.compile(r"(step|best)-(\d{8,})(?:-(\d+))?$")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    path: Path

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class CheckpointStore:
    """The `checkpoints` directory of one run: `save`, `load`, and the same for the best evaluated weights."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def create(self) -> None:
        """Makes the directory and removes what dead processes left half-written in it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic_files.disk_error(self.directory, 0, error) from error
        atomic_files.remove_stale_temporaries(self.directory)

    def save(self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> Path:
        """Publishes the state at `step`, then points `last.json` at it, then prunes; returns its path.

        Raises DiskError (what was there before is intact) or NonFiniteError (nothing was written). Nothing is
        overwritten: the same state at the same step is kept, another one gets the next free name.
        """
        return self._save("step", step, tensors, scalars)

    def save_best(self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> Path:
        """Publishes the best evaluated weights in the same way, under `best.json`."""
        return self._save("best", step, tensors, scalars)

    def load(self, *, repair: bool = False) -> Checkpoint | None:
        """The newest sound checkpoint, None if there never was one; CheckpointError if all are damaged.

        A damaged one is logged with the reason and passed over. With `repair`, for a run that goes on, it is
        also renamed to `NAME.damaged-1`, so that no later pruning takes it away.
        """
        expected, complaint = self._pointed("last.json")
        if complaint:
            _LOG.warning("%s Taking the newest sound checkpoint instead.", complaint)
        reasons: list[str] = []
        for path in self._names("step"):
            try:
                checkpoint = self._read_as_pointed(path, expected)
            except checksummed_json.NewerFormatError:
                raise
            except CheckpointError as error:
                kept = self._set_aside(path, "damaged") if repair else path
                reasons.append(str(error))
                _LOG.warning("%s Going back to the checkpoint before it; it is kept as %s.", error, kept.name)
                continue
            return checkpoint
        if reasons or complaint:
            reason = reasons[0] if reasons else complaint
            raise CheckpointError(f"{reason} No sound checkpoint is left in {self.directory}; start anew elsewhere.")
        return None

    def load_best(self) -> Checkpoint | None:
        """The best evaluated weights, None if there are none yet; CheckpointError if they are damaged."""
        expected, complaint = self._pointed("best.json")
        if complaint:
            raise CheckpointError(complaint)
        return None if expected is None else self._read_as_pointed(expected[0], expected)

    def valid_checkpoints(self, *, min_step: int = 0) -> list[Path]:
        """The sound checkpoints from step `least` on, newest first."""
        return [path for path in self._names("step") if _order(path)[0] >= min_step and self._is_valid(path)]

    def set_aside_after(self, step: int) -> list[Path]:
        """Renames the checkpoints later than `step` to `NAME.abandoned-1`: the run takes another course."""
        later = [path for path in self._names("step") if _order(path)[0] > step]
        moved = [self._set_aside(path, "abandoned") for path in later]
        if moved:
            atomic_files.fsync_directory(self.directory)
        return moved

    def read(self, path: Path) -> Checkpoint:
        """The checkpoint at `path`, every byte verified; CheckpointError says what was expected and found."""
        found = _NAME.match(path.name)
        document = _read_sealed(path / _SCALARS)
        if found is not None and document["step"] != int(found.group(2)):
            raise CheckpointError(f"{path} is damaged: it holds step {document['step']}.")
        for name, facts in document["files"].items():
            checksummed_json.verify_file(path / name, size=int(facts["size"]), sha256=facts["sha256"])
        tensors = load_file(path / _TENSORS)
        return Checkpoint(step=document["step"], tensors=tensors, scalars=document["scalars"], path=path)

    def _save(self, kind: str, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> Path:
        plain = json.loads(json.dumps(scalars))
        path, present = self._place(f"{kind}-{step:08d}", plain)
        if present:
            sealed = (path / _SCALARS).read_bytes()
        else:
            _refuse_non_finite(tensors, step)
            body = {"format_version": CHECKPOINT_FORMAT, "step": step, "scalars": plain}
            payload = checksummed_json.ChecksummedJson(body, listed=[_TENSORS])
            atomic_files.write_directory_atomically(path, {_TENSORS: TensorPayload(tensors), _SCALARS: payload})
            sealed = payload.data
        pointer = {
            "format_version": CHECKPOINT_FORMAT,
            "name": path.name,
            "step": step,
            "size": len(sealed),
            "state_sha256": hashlib.sha256(sealed).hexdigest(),
        }
        atomic_files.write_atomically(
            self.directory / ("last.json" if kind == "step" else "best.json"), checksummed_json.dumps(pointer)
        )
        self._prune(kind, path)
        return path

    def _place(self, name: str, scalars: dict[str, Any]) -> tuple[Path, bool]:
        """Where this state goes: a free name, or the sound copy of it that a killed save left complete."""
        path, number = self.directory / name, 0
        while os.path.lexists(path):
            try:
                if self.read(path).scalars == scalars:
                    return path, True
            except CheckpointError:
                pass
            number += 1
            path = self.directory / f"{name}-{number}"
        return path, False

    def _pointed(self, pointer: str) -> tuple[tuple[Path, int, str] | None, str | None]:
        """What the pointer file says (path, size and sha256 of its state.json), or a complaint about it."""
        file = self.directory / pointer
        if not file.exists():
            return None, None
        try:
            document = _read_sealed(file)
        except checksummed_json.NewerFormatError:
            raise
        except CheckpointError as error:
            return None, str(error)
        name = document["name"]
        if not _NAME.match(name):
            return None, f"{file} names {name!r}, which is no checkpoint."
        return (self.directory / name, document["size"], document["state_sha256"]), None

    def _is_valid(self, path: Path) -> bool:
        try:
            self.read(path)
        except CheckpointError:
            return False
        return True

    def _read_as_pointed(self, path: Path, expected: tuple[Path, int, str] | None) -> Checkpoint:
        if expected is not None and expected[0] == path:
            checksummed_json.verify_file(path / _SCALARS, size=expected[1], sha256=expected[2])
        return self.read(path)

    def _set_aside(self, path: Path, reason: str) -> Path:
        number = 1
        while os.path.lexists(target := path.with_name(f"{path.name}.{reason}-{number}")):
            number += 1
        return path.rename(target)

    def _names(self, kind: str) -> list[Path]:
        entries = self.directory.iterdir() if self.directory.is_dir() else ()
        found = [path for path in entries if (match := _NAME.match(path.name)) and match.group(1) == kind]
        return sorted(found, key=_order, reverse=True)

    def _prune(self, kind: str, newest: Path) -> None:
        older = [path for path in self._names(kind) if path != newest]
        keep = self.keep - 1 if kind == "step" else 0
        for path in older[keep:]:
            try:
                atomic_files.remove_directory(path)
            except OSError as error:
                # The new checkpoint is safe; an old one that stays only takes room.
                _LOG.warning("%s could not be removed: %s.", path, error.strerror)


def _order(path: Path) -> tuple[int, int]:
    found = _NAME.match(path.name)
    return (int(found.group(2)), int(found.group(3) or 0)) if found else (-1, 0)


def _read_sealed(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    return checksummed_json.loads(data, source=file, newest_format=CHECKPOINT_FORMAT)


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or Inf at step {step}; no checkpoint was written, the one before is intact."
            )
