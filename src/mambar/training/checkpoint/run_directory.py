"""The directory of a run: nothing in it is overwritten by surprise, and one run at a time works in it.

Needs no torch: recipe.json is written, and a mistake answered, before any heavy import.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mambar.errors import InputError, RecipeError
from mambar.training.checkpoint import atomic_files
from mambar.training.recipe import Recipe

_LOG = logging.getLogger("mambar.training")
RECIPE, LOCK = "recipe.json", ".lock"
# Fields that a resumed run may change; any other needs to be named in `override`.
CHANGEABLE_FIELDS: Final = (
    "epochs",
    "max_steps",
    "save_every",
    "eval_every",
    "log_every",
    "health_every",
    "track",
    "keep_checkpoints",
    "on_save_error",
)


@dataclass
class RunDirectory:
    """A claimed run directory; `release` lets others in."""

    path: Path
    recipe: Recipe
    resumed: bool
    _lock: int | None = field(default=None, repr=False)

    def discard_if_unused(self) -> None:
        """Takes a new directory away again where nothing but its recipe was written: bad input leaves no trace."""
        if self._lock is None or self.resumed:
            return
        with contextlib.suppress(OSError):
            # Made before the model is; goes only where it is empty.
            (self.path / "checkpoints").rmdir()
        found = {entry.name: entry.stat().st_size for entry in self.path.iterdir()}
        if not set(found) <= {RECIPE, LOCK, "metrics.jsonl"} or found.get("metrics.jsonl"):
            return
        for name in found:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_run_directory(
    out: Path, recipe: Recipe | None, *, resume: bool, override: Iterable[str] = (), writes: bool = True
) -> RunDirectory:
    """Claims `out` for a run of `recipe` (None: what recipe.json there says), or raises InputError.

    Not resuming, the directory must be new or empty. Resuming, it must hold a recipe.json, from which `recipe`
    may differ in `CHANGEABLE_FIELDS` and in the fields named in `override`. `writes`: only rank 0 writes and locks.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"out={out} is not a directory (links are not followed); choose another place.")
    if resume:
        merged = _merged(out, recipe, override)
        lock = _lock(out) if writes else None
        if writes and recipe is not None and merged.to_json() != (out / RECIPE).read_text("utf-8"):
            atomic_files.write_atomically(out / RECIPE, merged.to_json().encode())
        return RunDirectory(out, merged, resumed=True, _lock=lock)
    if recipe is None:
        raise InputError("a new run needs a recipe; name one, or give --resume DIR.")
    if not writes:
        return RunDirectory(out, recipe, resumed=False)
    _refuse_taken(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise InputError(f"out={out} leads through a file; choose another place.") from None
    except OSError as error:
        raise atomic_files.disk_error(out, 0, error) from error
    lock = _lock(out)
    try:
        # Once more, now that nobody else can write: two runs may have started at once.
        _refuse_taken(out)
        atomic_files.remove_stale_temporaries(out)
        atomic_files.write_atomically(out / RECIPE, recipe.to_json().encode())
    except BaseException:
        os.close(lock)
        raise
    return RunDirectory(out, recipe, resumed=False, _lock=lock)


def read_recipe(out: Path) -> Recipe:
    """The recipe of the run in `out`; InputError if there is none."""
    file = out / RECIPE
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{out} holds no {RECIPE}, so there is no run to resume; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from None
    return Recipe.from_json(text, source=str(file))


def _merged(out: Path, recipe: Recipe | None, override: Iterable[str]) -> Recipe:
    stored = read_recipe(out)
    if recipe is None:
        return stored
    allowed = set(CHANGEABLE_FIELDS) | set(override)
    changed = {
        name: pair
        for name, pair in stored.differences(recipe).items()
        if name not in allowed and name.rpartition(".")[2] not in allowed
    }
    if changed:
        listed = ", ".join(f"{name} {was!r} → {now!r}" for name, (was, now) in changed.items())
        raise RecipeError(
            f"the run in {out} has another recipe: {listed}. Resume it unchanged, name these fields in --override, "
            "or start a new run elsewhere."
        )
    return recipe


def _refuse_taken(out: Path) -> None:
    if not out.exists():
        return
    for entry in out.iterdir():
        if entry.name != LOCK and not atomic_files.is_temporary(entry):
            raise InputError(
                f"out={out} is not empty (it holds {entry.name}); choose another place, or go on with --resume {out}."
            )


def _lock(out: Path) -> int:
    """A lock that ends with this process, however it ends; not passed on to its children."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(out / LOCK, flags, 0o666)
    except OSError as error:
        raise atomic_files.disk_error(out / LOCK, 0, error) from error
    # After a restart by torchrun the process before may take a moment to go.
    deadline = time.monotonic() + (10 if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" else 0)
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(f"another run works in {out}{holder}; wait for it, or choose another place.")
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        # Windows: no lock; the check for a non-empty directory remains.
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
