"""Converts configuration dataclasses to JSON values and back; JSON has lists where Python has tuples."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from mambar.errors import InputError
from mambar.messages import did_you_mean

Config = TypeVar("Config")


def to_json_fields(config: Any) -> dict[str, Any]:
    """All fields of a dataclass as JSON values."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def from_json_fields(cls: type[Config], fields: Mapping[str, Any], *, what: str) -> Config:
    """The inverse of `to_json_fields`; raises `InputError` for an unknown field, `what` names the object."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"it has {', '.join(known)}.")
            raise InputError(f"{what} has no field {name!r}; {hint}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
