"""Tables of backends, registration, and the choice for each call.

The choice is, in this order: the argument `backend=`, `use_backend`, the environment variable MAMBAR_BACKEND, or the
first row of the op's table that supports the call.
"""

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
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mambar.errors import BackendUnavailable, InputError

logger = logging.getLogger("mambar.ops")

OPS = ("bidirectional_mix", "selective_scan", "causal_conv1d", "rms_norm")

# The ops that the kernels of a fused op replace.
_PARTS = {"bidirectional_mix": ("selective_scan", "causal_conv1d")}

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Activation types of the kernels, which compute in float32.
KERNEL_FLOATS = FLOATS[:3]

# How the op is called. "transformed": inside torch.func (grad, jvp, vmap) or forward-mode AD, which need plain
# operations. "compiled": a kernel is one opaque node of the graph. "exported": the program has to run where mambar is
# not installed, so it contains plain operations only.
Mode = Literal["eager", "transformed", "compiled", "exported"]

_active_name: ContextVar[str | None] = ContextVar("mambar_backend", default=None)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op: a row of the table `BACKENDS` in that op's `interface` module.

    Attributes:
        name: Name to select it by.
        module: Dotted path of the module that computes it, or a class with the same static methods. With `kernel` it
            defines `forward` and `backward` of the op's fixed signature, otherwise a function named like the op.
        devices: Supported device types; empty means all.
        dtypes: Supported activation types. The parameters are float32 for all of them but float64.
        requires: Packages that must be installed, or functions that return None or the reason why it cannot run.
        traceable: Consists of plain, differentiable operations, so that compile, export and torch.func can trace it.
        kernel: Runs as the custom operator `torch.ops.mambar.<op>`.
    """

    name: str
    module: str | type
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...]
    requires: tuple[str | Callable[[], str | None], ...] = ()
    traceable: bool = False
    kernel: bool = False

    @functools.cached_property
    def missing(self) -> str | None:
        """None, or the reason why it cannot run on this machine."""
        for need in self.requires:
            if callable(need):
                reason = need()
            else:
                reason = None if importlib.util.find_spec(need) else f"the package {need} is not installed"
            if reason is not None:
                return reason
        return None

    def load(self) -> Any:
        """The module or class that computes it, imported on first use."""
        return self._loaded

    @functools.cached_property
    def _loaded(self) -> Any:
        return importlib.import_module(self.module) if isinstance(self.module, str) else self.module

    def refuses(self, device: str, dtype: torch.dtype) -> str | None:
        """None, or the reason why it does not support this device type and activation type on this machine."""
        if self.devices and device not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, the tensors are on {device}"
        if dtype not in self.dtypes:
            return f"it takes {', '.join(str(d).removeprefix('torch.') for d in self.dtypes)}, not {dtype}"
        return self.missing


def kernel_backend(op: str, name: str, *, device: str, requires: tuple[str | Callable[[], str | None], ...]) -> Backend:
    """The row of the kernels in `mambar.ops.<op>.<name>`, which compute in float32."""
    module, devices = f"mambar.ops.{op}.{name}", (device,)
    return Backend(name=name, module=module, devices=devices, dtypes=KERNEL_FLOATS, requires=requires, kernel=True)


_interfaces: dict[str, ModuleType] = {}
_registered: dict[str, tuple[Backend, ...]] = {}


def register_op(op: str, interface: ModuleType) -> dict[str, Callable[..., Any]]:
    """Adds an op; returns the functions of those of its `BACKENDS` that are not kernels, kept as its `PLAIN`."""
    _interfaces[op] = interface
    return {row.name: getattr(row.load(), op) for row in interface.BACKENDS if not row.kernel}


def register_backend(op: str, backend: Backend) -> contextlib.ExitStack:
    """Adds a backend to the table of an op, before the built-in ones and those registered earlier.

    The result can be used as a context manager, which removes the backend on exit.

    Under `auto` it runs for every call whose device and types it supports, in models too: a built-in fused backend of
    `bidirectional_mix` is not used where a registered backend of `selective_scan` or `causal_conv1d` is the choice.
    The signature of `forward` and `backward` is in the docstring of `mambar.ops.<op>.interface`. Functions compiled
    before the registration keep their backend.
    """
    if backend.name == "auto" or any(row.name == backend.name for row in backends(op)):
        raise InputError(f"{op} already has a backend {backend.name!r}; choose another name or unregister it first.")
    if not backend.kernel:
        function = getattr(backend.load(), op, None)
        if function is None:
            raise InputError(f"{backend.module} has no function {op!r}; define it, or pass kernel=True for a kernel.")
        _interface(op).PLAIN[backend.name] = function
    _registered[op] = (backend, *_registered.get(op, ()))
    registration = contextlib.ExitStack()
    registration.callback(unregister_backend, op, backend.name)
    return registration


def unregister_backend(op: str, name: str) -> None:
    """Removes a backend that `register_backend` added."""
    if all(row.name != name for row in _registered.get(op, ())):
        raise InputError(f"{op} has no registered backend {name!r}; built-in backends cannot be removed.")
    _registered[op] = tuple(row for row in _registered[op] if row.name != name)
    _interface(op).PLAIN.pop(name, None)


def _interface(op: str) -> ModuleType:
    if op not in OPS:
        raise InputError(f"op={op!r} is not known; the ops are {', '.join(OPS)}.")
    return _interfaces[op]


def backends(op: str) -> tuple[Backend, ...]:
    """The table of an op, best first, including backends that this machine cannot run."""
    return (*_registered.get(op, ()), *_interface(op).BACKENDS)


def available_backends(op: str, device: str | torch.device = "cpu") -> list[Backend]:
    """The backends of an op for a device, best first; `.missing` says why one cannot run on this machine."""
    kind = torch.device(device).type
    return [row for row in backends(op) if not row.devices or kind in row.devices]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the `with` block every op uses the backend of this name, if it has one.

    An op without such a backend chooses automatically; `bidirectional_mix` is then composed of the other ops, which
    use theirs. `auto` restores the automatic choice. The argument `backend=` of a call takes precedence.
    """
    _check_known(name, "use_backend")
    token = _active_name.set(name)
    try:
        yield
    finally:
        _active_name.reset(token)


def _check_known(name: str, where: str) -> None:
    if name == "auto":
        return
    known = dict.fromkeys(row.name for op in OPS for row in backends(op))
    if name not in known:
        raise InputError(f"{where}: no op has a backend {name!r}; use auto or one of {', '.join(known)}.")


def resolve(
    op: str,
    asked: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    float64: str | None = None,
    otherwise: str | None = None,
) -> str:
    """The name of the backend for this call: argument, `use_backend`, MAMBAR_BACKEND, or the first that fits.

    `otherwise` is used when `use_backend` or MAMBAR_BACKEND names a backend that this op does not have. Raises
    `BackendUnavailable` when a requested backend cannot run; the message names the argument `float64` if that is why.
    A compiled graph keeps the name it was traced with.
    """
    active = _active_name.get() if _FOLLOWS else active_backend()
    return _choose(op, asked, active, device.type, dtype, otherwise, mode(), float64)


# Whether Dynamo traces a ContextVar: torch 2.15 does; with 2.11 a compiled function keeps the name that was active
# when it was traced.
_FOLLOWS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15)


def active_backend() -> str | None:
    """The name given to `use_backend`; None outside of it."""
    return _active_name.get()


def mode() -> Mode:
    """How the op is called: run now, run inside torch.func or forward-mode AD, compiled, or exported."""
    if _is_exporting():
        return "exported"
    if is_transformed():
        return "transformed"
    return "compiled" if torch.compiler.is_compiling() else "eager"


def is_empty(tensor: Tensor) -> bool:
    """Whether a call has nothing to compute; a graph always contains the op, because its sizes may change."""
    return mode() in ("eager", "transformed") and tensor.numel() == 0


def _is_exporting() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_transformed() -> bool:
    """Whether torch.func (grad, jvp, vmap) or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _choose(
    op: str,
    asked: str,
    active: str | None,
    device: str,
    dtype: torch.dtype,
    otherwise: str | None,
    mode: Mode,
    float64: str | None = None,
) -> str:
    table = backends(op)
    names = [row.name for row in table]
    if asked != "auto" and asked not in names:
        raise InputError(f"backend={asked!r} is not one of {op}: use auto or one of {', '.join(names)}.")
    if asked == "auto":
        asked = _requested_name(active)
        if asked != "auto" and asked not in names:
            asked = otherwise or "auto"
    if asked == "auto":
        return _first_that_fits(op, table, device, dtype, mode)
    row = table[names.index(asked)]
    reason = row.refuses(device, dtype)
    if float64 is not None and dtype not in row.dtypes:
        reason = f"{reason}, the type of {float64}"
    if reason is None and mode == "transformed" and not row.traceable:
        reason = "it does not support torch.func and forward-mode AD"
    if reason is None and mode != "eager" and not (row.traceable or row.kernel):
        reason = "it cannot be traced by compile or export"
    if reason is not None:
        raise BackendUnavailable(f"{op}: backend {asked!r} cannot run: {reason}; use backend='auto'.")
    return asked


# Dynamo runs a function with this mark while tracing and treats its result as a constant. Setting it through
# torch.compiler would import torch._dynamo with mambar.ops, which takes four seconds.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]
# Under Dynamo of torch 2.11, torch.compiler.is_exporting is always true.
_is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
active_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _requested_name(active: str | None) -> str:
    if active is not None:
        return active
    name = os.environ.get("MAMBAR_BACKEND") or "auto"
    _check_known(name, "MAMBAR_BACKEND")
    return name


def _first_that_fits(op: str, table: tuple[Backend, ...], device: str, dtype: torch.dtype, mode: Mode) -> str:
    skipped: list[tuple[str, str]] = []
    for row in table:
        if device == "meta" or mode in ("exported", "transformed"):
            right_kind = row.traceable
        else:
            right_kind = mode == "eager" or row.traceable or row.kernel
        if not right_kind or (row.devices and device not in row.devices) or dtype not in row.dtypes:
            continue
        if row.kernel and row not in _registered.get(op, ()) and _has_registered_part(op, device, dtype, mode):
            continue
        if row.missing is None:
            for name, reason in skipped:
                _log_once(f"{op}: backend {name!r} cannot run here: {reason}; using {row.name!r}.")
            return row.name
        skipped.append((row.name, row.missing))
    raise BackendUnavailable(
        f"{op}: no backend takes {dtype} tensors on {device}; see mambar.ops.available_backends({op!r})."
    )


def _has_registered_part(op: str, device: str, dtype: torch.dtype, mode: Mode) -> bool:
    """Whether one of the ops that this op fuses would run on a backend that the user registered."""
    for part in _PARTS.get(op, ()):
        names = [row.name for row in _registered.get(part, ())]
        if names and _first_that_fits(part, backends(part), device, dtype, mode) in names:
            return True
    return False


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def kernel(op: str, name: str) -> Any:
    """The module of a kernel backend, imported on first use; `InputError` if there is none of this name."""
    for row in backends(op):
        if row.name == name and row.kernel:
            return row.load()
    raise InputError(f"{op} has no kernel backend {name!r}; register it with mambar.ops.register_backend.")
