"""Type checks for dataclass fields, and parsing of field values from the command line.

Needs no torch, so that a wrong name or value is reported at once.
"""

import contextlib
import dataclasses
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mambar.errors import RecipeError
from mambar.json_fields import Allowed as Allowed
from mambar.json_fields import check_allowed
from mambar.messages import did_you_mean, short_repr

# Integers fit in 64 bits; a longer text than any path or list is refused before it is parsed.
_INT_LIMIT = 2**63
_TEXT_LIMIT = 4096
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def suggestion(name: str, allowed: Iterable[str], *, listing: str = "") -> str:
    """A hint that names the nearest allowed name, else the command that lists them, else all of them."""
    known = sorted(allowed)
    otherwise = f"`{listing}` lists them." if listing else f"choose one of {', '.join(known)}."
    return did_you_mean(name, known, otherwise=otherwise, cutoff=0.55)


def field_types(cls: type) -> dict[str, Any]:
    """The declared types of a dataclass by field name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def describe(kind: Any) -> str:
    """A type in words, for an error message."""
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(kind))
    if origin is tuple:
        return "(" + ", ".join("..." if part is Ellipsis else describe(part) for part in get_args(kind)) + ")"
    if origin is Mapping or origin is dict:
        return "a table of names and values"
    if kind is type(None):
        return "none"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))


def check(kind: Any, value: Any, *, name: str) -> Any:
    """`value` in the declared type (a list becomes a tuple, a whole number a float), else RecipeError."""
    accepted, result = _convert(kind, value)
    if not accepted:
        raise RecipeError(f"{cut_name(name)}={short_repr(value)} is not allowed; it takes {describe(kind)}.")
    if isinstance(result, Mapping):
        for key, item in result.items():
            check_numbers(item, name=f"{name}.{key}")
    return result


def check_fields(owner: Any, allowed: Allowed = (), *, prefix: str = "") -> None:
    """Converts the fields of a frozen dataclass to their types; RecipeError for a type or value that is not allowed.

    None is an allowed value of every field whose type includes it. prefix: precedes the names in messages.
    """
    for name, kind in field_types(type(owner)).items():
        object.__setattr__(owner, name, check(kind, getattr(owner, name), name=prefix + name))
    check_allowed(owner, allowed, prefix=prefix, error=RecipeError)


def task_options(cls: type[Any], given: Mapping[str, Any], *, task: str) -> Any:
    """The dataclass of a task's options from a recipe's `task_options`; RecipeError for an unknown or missing name."""
    known = field_types(cls)
    for name in given:
        if name not in known:
            raise RecipeError(f"task_options.{name}: {task} has no such option; {suggestion(name, known)}")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise RecipeError(f"task_options.{field.name} is missing; task={task} needs it.")
    return cls(**given)


def check_numbers(value: Any, *, name: str) -> None:
    """Raises RecipeError for a number in `value`, or in its lists and tables, that is not finite or exceeds 64 bits."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            check_numbers(item, name=name)
    elif isinstance(value, int | float) and not _is_bounded(value):
        raise RecipeError(f"{cut_name(name)}={short_repr(value)} is not allowed; numbers are finite and below 2^63.")


def cut_name(name: str) -> str:
    """A field's name for an error message, cut to 60 characters."""
    return name if len(name) <= 60 else name[:59] + "…"


def parse(kind: Any, text: str, *, name: str) -> Any:
    """The value of `text` in the declared type; RecipeError if there is none."""
    check_length(text, name=name)
    for candidate in _readings(kind, text.strip()):
        accepted, result = _convert(kind, candidate)
        if accepted:
            return result
    raise RecipeError(f"{cut_name(name)}={short_repr(text)} is not allowed; it takes {describe(kind)}.")


def check_length(text: str, *, name: str) -> None:
    """Raises RecipeError for a text of more than 4,096 characters."""
    if len(text) > _TEXT_LIMIT:
        raise RecipeError(f"{cut_name(name)} has {len(text)} characters; at most {_TEXT_LIMIT} are allowed.")


def literal(text: str) -> Any:
    """The JSON value of a text (none, numbers, true, lists with or without brackets), else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for spelled in (text, f"[{text}]") if "," in text else (text,):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(spelled)
            return tuple(value) if isinstance(value, list) else value
    return text


def _convert(kind: Any, value: Any) -> tuple[bool, Any]:
    origin = get_origin(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind)), value
    if origin in (Union, types.UnionType):
        for part in get_args(kind):
            accepted, result = _convert(part, value)
            if accepted:
                return True, result
        return False, value
    if origin is tuple:
        return _convert_tuple(get_args(kind), value)
    if origin is Mapping or origin is dict or origin is types.MappingProxyType:
        accepted = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return accepted, dict(value) if accepted else value
    if kind is type(None):
        return value is None, value
    if kind is Any:
        return True, value
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        accepted = number and _is_bounded(value)
        return accepted, float(value) if accepted else value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and _is_bounded(value), value
    return type(value) is kind, value


def _is_bounded(value: float) -> bool:
    return -_INT_LIMIT < value < _INT_LIMIT if isinstance(value, int) else math.isfinite(value)


def _convert_tuple(parts: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    of_any_length = len(parts) == 2 and parts[1] is Ellipsis
    if of_any_length and isinstance(value, int | float):
        # One number on the command line, whose type is not known where it is read.
        value = [value]
    if not isinstance(value, list | tuple):
        return False, value
    if of_any_length:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        return False, value
    converted = [_convert(part, item) for part, item in zip(parts, value, strict=True)]
    return all(accepted for accepted, _ in converted), tuple(result for _, result in converted)


def _readings(kind: Any, text: str) -> list[Any]:
    """Possible values of the text, most literal first; `_convert` selects one that the type allows."""
    origin = get_origin(kind)
    kinds = get_args(kind) if origin in (Union, types.UnionType) else (kind,)
    readings: list[Any] = []
    lowered = text.lower()
    if type(None) in kinds and lowered in ("none", "null", ""):
        readings.append(None)
    if bool in kinds and lowered in _TRUE | _FALSE:
        readings.append(lowered in _TRUE)
    for reader in (int, float):
        try:
            readings.append(reader(text))
        except ValueError:
            continue
    if any(get_origin(part) is tuple for part in kinds):
        pieces = re.sub(r"(?<=\d)x(?=\d)", ",", text.strip("()[] ")).split(",")
        readings.append([literal(piece.strip()) for piece in pieces if piece.strip()])
    if any(get_origin(part) in (Mapping, dict) for part in kinds):
        readings.append(literal(text))
    readings.append(text)
    return readings
