"""The run directory: created, locked for one run at a time, and never overwritten by another.

Needs no torch: recipe.json is written, and a mistake reported, before any heavy import.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mambar import atomic_files
from mambar.errors import InputError, RecipeError
from mambar.training.checkpoint.recipe_file import RECIPE_NAME, RecipeFile, read_recipe_file
from mambar.training.recipe import Recipe, current_field_name

_LOG = logging.getLogger("mambar.training")
LOCK: Final = ".lock"
# Fields that a resumed run may change; any other must be named in `override`.
CHANGEABLE_FIELDS: Final = (
    "epochs",
    "max_steps",
    "save_every",
    "eval_every",
    "log_every",
    "health_every",
    "trackers",
    "keep_checkpoints",
    "on_save_error",
)


@dataclass
class RunDirectory:
    """The directory of a running run, locked until `release`.

    Attributes:
        path: The directory.
        recipe: The recipe of the run.
        recipe_sha256: Digests of the recipe that checkpoints may carry, the present one first.
        resumed: True if the directory held a run before.
        changes: Fields that this resume changes: dotted name → (value before, value now).
    """

    path: Path
    recipe: Recipe
    recipe_sha256: tuple[str, ...]
    resumed: bool
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    _lock: int | None = field(default=None, repr=False)
    _unwritten: RecipeFile | None = field(default=None, repr=False)

    def record_changes(self) -> None:
        """Writes the changes of a resumed run to recipe.json; called once they are known to have an effect."""
        if self._unwritten is not None:
            self._unwritten.write(self.path)
            self._unwritten = None

    def discard_if_unused(self) -> None:
        """Removes a new directory that holds nothing but its recipe, so that refused input leaves no files."""
        if self._lock is None or self.resumed:
            return
        with contextlib.suppress(OSError):
            # Created before the model is built; only an empty one is removed.
            (self.path / "checkpoints").rmdir()
        found = {entry.name: entry.stat().st_size for entry in self.path.iterdir()}
        if not set(found) <= {RECIPE_NAME, LOCK, "metrics.jsonl"} or found.get("metrics.jsonl"):
            return
        for name in found:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def release(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_run_directory(
    out: Path,
    recipe: Recipe | None,
    *,
    resume: bool,
    override: Iterable[str] = (),
    accept_edited_recipe: bool = False,
    writes: bool = True,
) -> RunDirectory:
    """Creates or reopens `out` for a run of `recipe` (None: the recipe stored there), or raises InputError.

    A new run needs a new or empty directory. A resumed one needs a recipe.json, from which `recipe` may differ in
    `CHANGEABLE_FIELDS` and in the fields named in `override`; changes are recorded in recipe.json.
    accept_edited_recipe: take a recipe.json that was edited by hand. writes: True on rank 0, which writes and locks.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"out={out} is not a directory (links are not followed); choose another path.")
    if resume:
        stored = read_recipe_file(out, accept_edited=accept_edited_recipe)
        merged = _merged(out, stored, recipe, override)
        changes = stored.recipe.differences(merged.recipe)
        if stored.edited:
            changes[RECIPE_NAME] = ("stored", "edited")
        lock = _lock(out) if writes else None
        directory = _opened(out, merged, resumed=True, lock=lock)
        return replace(directory, changes=changes, _unwritten=merged if writes and changes else None)
    if recipe is None:
        raise InputError("a new run needs a recipe; name one, or give --resume DIR.")
    file = RecipeFile.of(recipe)
    if not writes:
        return _opened(out, file, resumed=False, lock=None)
    _refuse_taken(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise InputError(f"out={out} has a file among its parent directories; choose another path.") from None
    except OSError as error:
        raise atomic_files.disk_error(out, 0, error) from error
    lock = _lock(out)
    try:
        # Once more under the lock: two runs may have started at the same time.
        _refuse_taken(out)
        atomic_files.remove_stale_temporaries(out)
        file.write(out)
    except BaseException:
        os.close(lock)
        raise
    return _opened(out, file, resumed=False, lock=lock)


def read_recipe(out: Path, *, accept_edited: bool = False) -> Recipe:
    """The recipe of the run in `out`; InputError if there is none, or if it was edited and not `accept_edited`."""
    return read_recipe_file(out, accept_edited=accept_edited).recipe


def read_located_recipe(run: str | Path) -> Recipe:
    """The recipe of a run, with absolute paths where its relative ones are not in the current directory."""
    return read_recipe_file(Path(run).expanduser()).located()


def _opened(out: Path, file: RecipeFile, *, resumed: bool, lock: int | None) -> RunDirectory:
    return RunDirectory(out, file.located(), file.accepted_sha256, resumed=resumed, _lock=lock)


def _merged(out: Path, stored: RecipeFile, recipe: Recipe | None, override: Iterable[str]) -> RecipeFile:
    if recipe is None or recipe == stored.recipe:
        return stored
    override = tuple(current_field_name(name) for name in override)
    allowed = set(CHANGEABLE_FIELDS) | set(override)
    changed = {
        name: pair
        for name, pair in stored.recipe.differences(recipe).items()
        if name not in allowed and name.rpartition(".")[2] not in allowed
    }
    if changed:
        listed = ", ".join(f"{name} {was!r} → {now!r}" for name, (was, now) in changed.items())
        raise RecipeError(
            f"the run in {out} has another recipe: {listed}. Resume it unchanged, name these fields in --override, "
            "or start a new run elsewhere."
        )
    return stored.changed(recipe, option=" ".join(["--resume", *(f"--override {name}" for name in override)]))


def _refuse_taken(out: Path) -> None:
    if not out.exists():
        return
    for entry in out.iterdir():
        if entry.name != LOCK and not atomic_files.is_temporary(entry):
            raise InputError(
                f"out={out} is not empty (it holds {entry.name}); choose another path, or continue that run with "
                f"--resume {out}."
            )


def _lock(out: Path) -> int:
    """A lock that the system releases when this process ends; child processes do not inherit it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(out / LOCK, flags, 0o666)
    except OSError as error:
        raise atomic_files.disk_error(out / LOCK, 0, error) from error
    # After a restart by torchrun the previous process may need a moment to end.
    deadline = time.monotonic() + (10 if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" else 0)
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(f"another run uses {out}{holder}; wait until it ends, or choose another path.")
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        # Windows has no lock here; the check for a non-empty directory remains.
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return f" (process {text})" if text.isdecimal() else ""
    return ""
