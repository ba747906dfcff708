"""Which backend computes an op: by argument, by `use_backend`, by MAMBAR_BACKEND, or the best that fits."""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch

from mambar.errors import BackendUnavailable, InputError

logger = logging.getLogger("mambar.ops")

OPS = ("bidirectional_mix", "selective_scan", "causal_conv1d", "rms_norm")

# How the op is called just now. A compiled graph holds a kernel as one opaque node; an exported program has
# to run where mambar is not installed, so it is made of plain operations only.
Mode = Literal["eager", "compiled", "exported"]

_name_in_force: ContextVar[str | None] = ContextVar("mambar_backend", default=None)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute an op: a row in the `BACKENDS` table of that op's interface."""

    name: str
    module: str
    """Dotted path of the file; a kernel's is imported when it first runs."""
    devices: tuple[str, ...] = ()
    """Device types it runs on; empty means any."""
    dtypes: tuple[torch.dtype, ...]
    """Types of the activations it takes; the state is float32 (float64 for float64) whatever they are."""
    requires: tuple[str | Callable[[], str | None], ...] = ()
    """Packages that must be installed, or probes that return None or the reason why it cannot run."""
    traceable: bool = False
    """Plain operations that full-graph compile and export see through."""
    kernel: bool = False
    """A module with `forward` and `backward` of the op's fixed signature, run behind `torch.ops.mambar`."""

    @property
    def missing(self) -> str | None:
        """None, or the reason why it cannot run on this machine."""
        return _first_missing(self.requires)

    def load(self) -> ModuleType:
        """The module that computes it."""
        return importlib.import_module(self.module)

    def refuses(self, device: str, dtype: torch.dtype) -> str | None:
        """None, or the reason why it does not take activations of this device type and dtype here."""
        if self.devices and device not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, the tensors are on {device}"
        if dtype not in self.dtypes:
            return f"it takes {', '.join(str(d).removeprefix('torch.') for d in self.dtypes)}, not {dtype}"
        return self.missing


@functools.cache
def _first_missing(requires: tuple[str | Callable[[], str | None], ...]) -> str | None:
    for need in requires:
        if callable(need):
            reason = need()
            if reason is not None:
                return reason
        elif importlib.util.find_spec(need) is None:
            return f"the package {need} is not installed"
    return None


def backends(op: str) -> tuple[Backend, ...]:
    """The table of an op, best first, whatever this machine can run."""
    if op not in OPS:
        raise InputError(f"op={op!r} is not known; the ops are {', '.join(OPS)}.")
    return importlib.import_module(f"mambar.ops.{op}.interface").BACKENDS


def available_backends(op: str, device: str | torch.device = "cpu") -> list[Backend]:
    """The backends of an op for a device, best first; `.missing` says why one cannot run on this machine."""
    kind = torch.device(device).type
    return [row for row in backends(op) if not row.devices or kind in row.devices]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Every op inside the `with` block uses the backend of this name, where it has one.

    An op without a backend of that name chooses automatically; `bidirectional_mix` then composes the other
    ops, so that the name reaches them. `auto` goes back to the automatic choice. An argument `backend=` of a
    call goes first.
    """
    _check_known(name, "use_backend")
    token = _name_in_force.set(name)
    try:
        yield
    finally:
        _name_in_force.reset(token)


def _check_known(name: str, where: str) -> None:
    known = dict.fromkeys(row.name for op in OPS for row in backends(op))
    if name != "auto" and name not in known:
        raise InputError(f"{where}: no op has a backend {name!r}; use auto or one of {', '.join(known)}.")


def resolve(op: str, asked: str, *, device: torch.device, dtype: torch.dtype, otherwise: str | None = None) -> str:
    """The name of the backend for this call: argument, `use_backend`, MAMBAR_BACKEND, or the first that fits.

    `otherwise` is taken when a name in force is none of this op's. Raises `BackendUnavailable` when an
    asked-for backend cannot run. A compiled graph keeps the name it was traced with.
    """
    in_force = _name_in_force.get() if _FOLLOWS else _in_force()
    return _choose(op, asked, in_force, device.type, dtype, otherwise, mode())


# Whether Dynamo follows a ContextVar: seen in torch 2.15, not in 2.11, where a compiled function keeps the name that
# was in force when it was traced.
_FOLLOWS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15)


def _in_force() -> str | None:
    return _name_in_force.get()


def mode() -> Mode:
    """Whether the call runs now, or is being compiled or exported."""
    if _exports():
        return "exported"
    return "compiled" if torch.compiler.is_compiling() else "eager"


def _exports() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _choose(
    op: str,
    asked: str,
    in_force: str | None,
    device: str,
    dtype: torch.dtype,
    otherwise: str | None,
    mode: Mode,
) -> str:
    table = backends(op)
    names = [row.name for row in table]
    if asked != "auto" and asked not in names:
        raise InputError(f"backend={asked!r} is not one of {op}: use auto or one of {', '.join(names)}.")
    if asked == "auto":
        asked = _standing_name(in_force)
        if asked != "auto" and asked not in names:
            asked = otherwise or "auto"
    if asked == "auto":
        return _first_that_fits(op, table, device, dtype, mode)
    row = table[names.index(asked)]
    reason = row.refuses(device, dtype)
    if reason is None and mode != "eager" and not (row.traceable or row.kernel):
        reason = "it cannot be traced by compile or export"
    if reason is not None:
        raise BackendUnavailable(f"{op}: backend {asked!r} cannot run: {reason}; use backend='auto'.")
    return asked


# Dynamo runs a function with this mark and keeps its result as a constant. Setting it through torch.compiler
# would import all of torch._dynamo, four seconds, with mambar.ops.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
# Dynamo of torch 2.11 takes torch.compiler.is_exporting for true whenever it compiles.
_exports._dynamo_marked_constant = True  # type: ignore[attr-defined]
_in_force._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _standing_name(in_force: str | None) -> str:
    if in_force is not None:
        return in_force
    name = os.environ.get("MAMBAR_BACKEND") or "auto"
    _check_known(name, "MAMBAR_BACKEND")
    return name


def _first_that_fits(op: str, table: tuple[Backend, ...], device: str, dtype: torch.dtype, mode: Mode) -> str:
    skipped: list[tuple[str, str]] = []
    for row in table:
        if device == "meta" or mode == "exported":
            right_kind = row.traceable
        else:
            right_kind = mode == "eager" or row.traceable or row.kernel
        if not right_kind or (row.devices and device not in row.devices) or dtype not in row.dtypes:
            continue
        if row.missing is None:
            for name, reason in skipped:
                _log_once(f"{op}: backend {name!r} cannot run here: {reason}; using {row.name!r}.")
            return row.name
        skipped.append((row.name, row.missing))
    raise BackendUnavailable(
        f"{op}: no backend takes {dtype} tensors on {device}; see mambar.ops.available_backends({op!r})."
    )


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def kernel(op: str, name: str) -> ModuleType:
    """The module of a kernel backend, imported on first use."""
    return next(row for row in backends(op) if row.name == name).load()
