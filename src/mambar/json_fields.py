"""Checks configurations and format versions; converts dataclasses to JSON (lists in place of tuples) and back."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from mambar.errors import CheckpointError, InputError, NewerFormatError
from mambar.messages import did_you_mean, short_repr

Config = TypeVar("Config")
# Rows of: allowed values in words, the condition that they meet, names of fields.
Allowed = Sequence[tuple[str, Callable[[Any], bool], Sequence[str]]]


def finite(value: Any) -> Any:
    """`value`, a number or nested mappings and lists, with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def check_format_version(version: object, path: Path, *, newest: int) -> int:
    """A `format_version` from 1 to `newest`; NewerFormatError if it is newer, CheckpointError if it is invalid."""
    if type(version) is int and 1 <= version <= newest:
        return version
    message = f"{path} has format_version {short_repr(version)}; this version of mambar reads 1 to {newest}"
    if type(version) is int and version > newest:
        raise NewerFormatError(f"{message}: update mambar.")
    raise CheckpointError(f"{message}.")


def check_names(given: Iterable[str], known: Iterable[str], *, what: str, error: type[InputError] = InputError) -> None:
    """Raises `error` for a name that is not known, after the words `what`, as in "a segmenter has no field"."""
    allowed = list(known)
    for name in given:
        if name not in allowed:
            hint = did_you_mean(name, allowed, otherwise=f"it has {', '.join(allowed)}.")
            raise error(f"{what} {short_repr(name)}; {hint}")


def check_allowed(options: Any, allowed: Allowed, *, prefix: str = "", error: type[InputError] = InputError) -> None:
    """Raises `error` for a field whose value does not meet the condition of its row; None meets every condition.

    prefix: precedes the names in messages.
    """
    for words, is_allowed, names in allowed:
        for name in names:
            value = getattr(options, name)
            if value is not None and not is_allowed(value):
                or_none = ", or none" if getattr(type(options), name, 0) is None else ""
                raise error(f"{prefix}{name}={short_repr(value)} is not allowed; it takes {words}{or_none}.")


def check_choices(options: Any, **tables: Collection[str]) -> None:
    """Raises `InputError` for a field of a dataclass that is not in its `Literal`, or in the table of its name here."""
    types = {field.name: field.type for field in dataclasses.fields(options)}
    literals = {name: get_args(kind) for name, kind in types.items() if get_origin(kind) is Literal}
    for name, allowed in {**literals, **tables}.items():
        value = getattr(options, name)
        if value not in allowed:
            raise InputError(f"{name}={short_repr(value)} is not known; choose one of {', '.join(allowed)}.")


def to_json_fields(config: Any) -> dict[str, Any]:
    """All fields of a dataclass as JSON values."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def from_json_fields(cls: type[Config], fields: Mapping[str, Any], *, what: str) -> Config:
    """The inverse of `to_json_fields`; raises `InputError` for an unknown field, `what` names the object."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_names(fields, known, what=f"{what} has no field")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
