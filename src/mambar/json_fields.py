"""Converts configuration dataclasses to JSON values and back; JSON has lists where Python has tuples."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mambar.errors import InputError
from mambar.messages import did_you_mean, short_repr

Config = TypeVar("Config")


def finite(value: Any) -> Any:
    """`value`, a number or nested mappings and lists, with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def check_names(given: Iterable[str], known: Iterable[str], *, what: str, error: type[InputError] = InputError) -> None:
    """Raises `error` for a name that is not known, after the words `what`, as in "a segmenter has no field"."""
    allowed = list(known)
    for name in given:
        if name not in allowed:
            hint = did_you_mean(name, allowed, otherwise=f"it has {', '.join(allowed)}.")
            raise error(f"{what} {short_repr(name)}; {hint}")


def to_json_fields(config: Any) -> dict[str, Any]:
    """All fields of a dataclass as JSON values."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def from_json_fields(cls: type[Config], fields: Mapping[str, Any], *, what: str) -> Config:
    """The inverse of `to_json_fields`; raises `InputError` for an unknown field, `what` names the object."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_names(fields, known, what=f"{what} has no field")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
