"""Arguments of the form `name=value`, shared by all verbs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from mambar.cli.console import escaped
from mambar.errors import InputError
from mambar.messages import did_you_mean

_OF_DATA = "data_options."
DEVICES = ("auto", "cpu", "cuda", "mps")

Assignments = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Run options and recipe fields.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


@dataclass(kw_only=True)
class RunOptions:
    """Where and how a verb runs: the options every verb shares. What is left over are fields of the verb."""

    data: str | None = None
    out: Path | None = None
    seed: int | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def assignments(self) -> list[str]:
        """The left-over fields as they were written."""
        return [f"{name}={value}" for name, value in self.fields.items()]


def parse(assignments: Sequence[str] | None, *, allowed: Sequence[str] | None = None) -> RunOptions:
    """Sorts `name=value` arguments into run options and fields.

    allowed: the only names a verb takes; None where a recipe checks the left-over fields itself. Raises
    `InputError` for anything else, with the nearest right name.
    """
    options = RunOptions()
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InputError(f"{assignment!r} is not NAME=VALUE; write for example data=PATH or device=cpu.")
        if name in ("data", "out") and not value.strip():
            raise InputError(f"{name}= is empty; write {name}=PATH.")
        if allowed is not None and name not in allowed:
            hint = did_you_mean(name, allowed, otherwise=f"this verb takes {', '.join(allowed)}.")
            raise InputError(f"There is no option {name!r}; {hint}")
        if name in ("data", "precision"):
            setattr(options, name, value)
        elif name == "out":
            options.out = Path(value).expanduser()
        elif name in ("seed", "workers"):
            setattr(options, name, whole_number(name, value))
        elif name == "device":
            if value.split(":")[0] not in DEVICES:
                raise InputError(f"device={value!r} is not known; choose one of {', '.join(DEVICES)}.")
            options.device = value
        else:
            options.fields[name] = value
    return options


def take_data_options(assignments: Sequence[str] | None) -> tuple[list[str], dict[str, Any]]:
    """The other assignments, and the data set's own options that `data_options.NAME=VALUE` give."""
    from mambar.training.fields import literal

    others, options = [], {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if name.startswith(_OF_DATA) and equals and name != _OF_DATA:
            options[name.removeprefix(_OF_DATA)] = literal(value)
        else:
            others.append(assignment)
    return others, options


def whole_number(name: str, value: str, least: int = 0) -> int:
    """The number a value stands for; raises `InputError` where it is none or too small."""
    try:
        number = int(value)
    except ValueError as error:
        raise InputError(f"{name}={value!r} must be a whole number.") from error
    if number < least:
        raise InputError(f"{name}={value} must be at least {least}.")
    return number


def img_size(value: str) -> int | tuple[int, int]:
    """Pixels: `224`, or height and width as `224x384`."""
    parts = value.lower().split("x")
    if len(parts) not in (1, 2):
        raise InputError(f"img_size={value!r} must be a number of pixels or HEIGHTxWIDTH.")
    numbers = [whole_number("img_size", part, 1) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def truth(name: str, value: str) -> bool:
    """A yes or a no."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in known:
        raise InputError(f"{name}={value!r} must be true or false.")
    return known[value.lower()]


def print_json(content: Any) -> None:
    """One JSON object on stdout, with control characters escaped."""
    typer.echo(escaped(json.dumps(content, indent=2, ensure_ascii=False)))
