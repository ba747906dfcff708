"""Checkpoints: one directory per step, checksummed and written atomically; damaged ones are kept and skipped.

    checkpoints/step-00000120/state.safetensors   tensors: model.*, ema.*, optimizer.*
    checkpoints/step-00000120/state.json          scalars, digest of the recipe, size and sha256 of the tensor file
    checkpoints/step-00000120/config.json         the model among the tensors, for `mambar.load`
    checkpoints/last.json, best.json              name and sha256 of the newest and of the best checkpoint

Each JSON file has its own checksum. `last.json` is replaced after the new directory is synced to disk. Then older
directories are removed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mambar import atomic_files
from mambar.errors import CheckpointError, NewerFormatError, NonFiniteError
from mambar.hub.config_file import CONFIG
from mambar.hub.files import config_bytes
from mambar.training.checkpoint import checksummed_json
from mambar.training.checkpoint.tensor_file import tensor_chunks

# 1: version 0.1, without the recipe's digest.
CHECKPOINT_FORMAT: Final = 2
_LOG = logging.getLogger("mambar.training.checkpoint.store")
_TENSORS, _SCALARS = "state.safetensors", "state.json"
_NAME: Final = re.compile(r"(step|best)-(\d{8,})(?:-(\d+))?$")


class OtherRunError(CheckpointError):
    """An intact checkpoint of a run with another recipe; no older checkpoint is loaded in its place."""


class SavedModel(NamedTuple):
    """The model among the tensors of a checkpoint: content of its config.json, and prefix of its tensors' names."""

    content: Mapping[str, Any]
    prefix: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        step: Steps since the start of the run.
        tensors: Tensors by name: model.*, ema.*, optimizer.*.
        scalars: All other state, as JSON values.
        path: Its directory.
    """

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    path: Path

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix.`, with the prefix removed from the name."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class CheckpointStore:
    """The `checkpoints` directory of one run: saves and loads its state, and the best evaluated weights.

    keep: number of checkpoints to keep. recipe_sha256: accepted digests of the run's recipe, the current one first; a
    checkpoint with another digest is refused. If empty, checkpoints of any recipe are read.
    """

    def __init__(self, directory: Path, *, keep: int = 2, recipe_sha256: Sequence[str] = ()) -> None:
        self.directory = directory
        self.keep = keep
        self.recipe_sha256 = tuple(recipe_sha256)

    def create(self) -> None:
        """Creates the directory and removes temporary files of processes that have ended."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic_files.disk_error(self.directory, 0, error) from error
        atomic_files.remove_stale_temporaries(self.directory)

    def save(
        self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], *, model: SavedModel | None = None
    ) -> Path:
        """Writes the state at `step`, then `last.json`, then removes older checkpoints; returns its path.

        Raises DiskError (older checkpoints are intact) or NonFiniteError (nothing was written). Nothing is
        overwritten: an equal state at the same step is kept, a different one gets the next free name.
        """
        return self._save("step", step, tensors, scalars, model)

    def save_best(
        self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], *, model: SavedModel | None = None
    ) -> Path:
        """Writes the best evaluated weights in the same way, under `best.json`."""
        return self._save("best", step, tensors, scalars, model)

    def load(self, *, repair: bool = False) -> Checkpoint | None:
        """The newest intact checkpoint; None if none was ever saved; CheckpointError if all are damaged.

        A damaged one is logged with the reason and skipped. With `repair`, for a resumed run, it is also renamed to
        `NAME.damaged-1`, so that it is not removed later.
        """
        reasons: list[str] = []
        expected = None
        try:
            expected = self._read_pointer("last.json")
        except NewerFormatError:
            raise
        except CheckpointError as error:
            reasons.append(str(error))
            _LOG.warning("%s Loading the newest intact checkpoint instead.", error)
        for path in self._names("step"):
            try:
                return self._read_expected(path, expected)
            except (NewerFormatError, OtherRunError):
                raise
            except CheckpointError as error:
                kept = self._set_aside(path, "damaged") if repair else path
                reasons.append(str(error))
                _LOG.warning("%s Loading the checkpoint before it; the damaged one is kept as %s.", error, kept.name)
        if reasons:
            raise CheckpointError(
                f"{reasons[-1]} No intact checkpoint is left in {self.directory}; start a new run elsewhere."
            )
        return None

    def load_best(self) -> Checkpoint | None:
        """The best evaluated weights, None if there are none yet; CheckpointError if they are damaged."""
        expected = self._read_pointer("best.json")
        return None if expected is None else self._read_expected(expected[0], expected)

    def valid_checkpoints(self, *, min_step: int = 0) -> list[Path]:
        """The valid checkpoints at step `min_step` or later, newest first."""
        found = []
        for path in self._names("step"):
            with contextlib.suppress(CheckpointError):
                if _order(path)[0] >= min_step:
                    found.append(self.read(path).path)
        return found

    def set_aside_after(self, step: int) -> list[Path]:
        """Renames the checkpoints after `step` to `NAME.abandoned-1`, for a run that was rolled back to `step`."""
        later = [path for path in self._names("step") if _order(path)[0] > step]
        moved = [self._set_aside(path, "abandoned") for path in later]
        if moved:
            atomic_files.fsync_directory(self.directory)
        return moved

    def read(self, path: Path) -> Checkpoint:
        """The checkpoint at `path`, every byte verified; CheckpointError says what was expected and found."""
        found = _NAME.match(path.name)
        document = _read_json(path / _SCALARS)
        if found is not None and document["step"] != int(found.group(2)):
            raise CheckpointError(f"{path} is damaged: it holds step {document['step']}.")
        self._check_recipe(document, path)
        for name, facts in document["files"].items():
            checksummed_json.verify_file(path / name, size=int(facts["size"]), sha256=facts["sha256"])
        tensors = load_file(path / _TENSORS)
        return Checkpoint(step=document["step"], tensors=tensors, scalars=document["scalars"], path=path)

    def _check_recipe(self, document: Mapping[str, Any], path: Path) -> None:
        # Format 1 has no digest.
        if not self.recipe_sha256 or document["format_version"] < 2:
            return
        if document["recipe_sha256"] not in (None, *self.recipe_sha256):
            raise OtherRunError(
                f"{path} is a checkpoint of another run: its recipe differs from recipe.json. Remove it, or resume the "
                "run that it belongs to."
            )

    def _save(
        self, kind: str, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], model: SavedModel | None
    ) -> Path:
        plain = json.loads(json.dumps(scalars))
        path, present = self._place(f"{kind}-{step:08d}", plain)
        if present:
            state = (path / _SCALARS).read_bytes()
        else:
            _refuse_non_finite(tensors, step)
            recipe = self.recipe_sha256[0] if self.recipe_sha256 else None
            body = {"format_version": CHECKPOINT_FORMAT, "step": step, "scalars": plain, "recipe_sha256": recipe}
            with atomic_files.atomic_directory(path, size=sum(tensor.nbytes for tensor in tensors.values())) as new:
                written = {_TENSORS: atomic_files.write_file(new / _TENSORS, tensor_chunks(tensors))}
                if model is not None:
                    config = config_bytes(
                        model.content, file=_TENSORS, **dataclasses.asdict(written[_TENSORS]), prefix=model.prefix
                    )
                    written[CONFIG] = atomic_files.write_file(new / CONFIG, [config])
                files = {name: dataclasses.asdict(digest) for name, digest in written.items()}
                state = checksummed_json.dumps({**body, "files": files})
                atomic_files.write_file(new / _SCALARS, [state])
        pointer = {
            "format_version": CHECKPOINT_FORMAT,
            "name": path.name,
            "step": step,
            "size": len(state),
            "state_sha256": hashlib.sha256(state).hexdigest(),
        }
        atomic_files.write_atomically(
            self.directory / ("last.json" if kind == "step" else "best.json"), checksummed_json.dumps(pointer)
        )
        self._prune(kind, path)
        return path

    def _place(self, name: str, scalars: dict[str, Any]) -> tuple[Path, bool]:
        """A free path for this state, or the path of an intact copy from an interrupted save."""
        path, number = self.directory / name, 0
        while os.path.lexists(path):
            with contextlib.suppress(CheckpointError):
                if self.read(path).scalars == scalars:
                    return path, True
            number += 1
            path = self.directory / f"{name}-{number}"
        return path, False

    def _read_pointer(self, pointer: str) -> tuple[Path, int, str] | None:
        """Path, size and sha256 of the state.json that a pointer file names; None if there is no such file."""
        file = self.directory / pointer
        if not file.exists():
            return None
        document = _read_json(file)
        if not _NAME.match(document["name"]):
            raise CheckpointError(f"{file} names {document['name']!r}, which is not a checkpoint.")
        return self.directory / document["name"], document["size"], document["state_sha256"]

    def _read_expected(self, path: Path, expected: tuple[Path, int, str] | None) -> Checkpoint:
        """The checkpoint at `path`, whose state.json must be the `expected` one if a pointer names it."""
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
                # The new checkpoint is complete. An old one that cannot be removed only takes disk space.
                _LOG.warning("%s could not be removed: %s.", path, error.strerror)


def _order(path: Path) -> tuple[int, int]:
    found = _NAME.match(path.name)
    return (int(found.group(2)), int(found.group(3) or 0)) if found else (-1, 0)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    return checksummed_json.loads(data, source=file, newest_format=CHECKPOINT_FORMAT)


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or Inf at step {step}; no checkpoint was written, the previous one is intact."
            )
