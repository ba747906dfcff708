"""Options and `field=value` arguments that several commands share.

Options of a command are written `--option VALUE`. `field=value` is for fields of a recipe, a model or a dataset.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from mambar.cli.console import escaped
from mambar.cli.option_rules import check_rules
from mambar.errors import InputError
from mambar.image_file import LARGEST_MAX_PIXELS, MAX_PIXELS
from mambar.messages import did_you_mean

logger = logging.getLogger("mambar.cli")

DEVICES = ("auto", "cpu", "cuda", "mps")
_DATA_OPTIONS = "data_options."


def _image_size(value: str) -> int | tuple[int, int]:
    """`224`, or height and width as `224x384`, in pixels."""
    parts = value.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and 0 < int(part) < 10**6 for part in parts):
        raise typer.BadParameter(
            f"--img-size {value} is not an image size; write pixels (224) or HEIGHTxWIDTH (224x384)."
        )
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _device(value: str) -> str:
    if value.split(":")[0] not in DEVICES:
        raise typer.BadParameter(f"--device {value} is not known; choose one of {', '.join(DEVICES)}.")
    return value


def _path(value: str) -> Path:
    if not value.strip():
        raise typer.BadParameter("--out is empty; write --out PATH.")
    return Path(value).expanduser()


# A parser receives text from click; the annotated type is the type that the command receives.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Compare = Annotated[str | None, typer.Option("--compare", metavar="MODEL", help="A second model to compare with.")]
Data = Annotated[str | None, typer.Option("--data", metavar="SET", help="A dataset's name or path.")]
Device = Annotated[
    str, typer.Option("--device", parser=_device, metavar="DEVICE", help=f"One of {', '.join(DEVICES)}.")
]
Fields = Annotated[
    list[str] | None, typer.Argument(metavar="NAME=VALUE", show_default=False, help="Fields of the recipe.")
]
DataOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME=VALUE", show_default=False, help="data_options.NAME=VALUE of the dataset."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders, or patterns such as '*.jpg'.")]
ImgSize = Annotated[
    Any, typer.Option("--img-size", parser=_image_size, metavar="PIXELS", help="224, or HEIGHTxWIDTH: 224x384.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        max=LARGEST_MAX_PIXELS,
        show_default=False,
        help=f"Largest image to decode, by default {MAX_PIXELS:,}; larger JPEGs are reduced.",
    ),
]
NumWorkers = Annotated[int | None, typer.Option("--num-workers", min=0, help="Data loader processes.")]
Out = Annotated[Any, typer.Option("--out", parser=_path, metavar="PATH", help="Output directory or file.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes on this machine (torchrun).")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load the released weights for a model's name.")]

# Option names of version 0.1, which were written name=value. Other options had today's names with underscores.
OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "": {"workers": "num-workers", "image_size": "img-size"},
    "bench": {"batch": "batch-size", "length": "seq-len", "name": "model", "compiled": "compile"},
    "analyze": {"colours": "colormap", "added_registers": "test-time-registers", "keep": "max-maps"},
}


def named_values(assignments: Sequence[str] | None) -> dict[str, str]:
    """`field=value` arguments as a dictionary; raises `InputError` for anything else."""
    found: dict[str, str] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{assignment!r} is not NAME=VALUE; write for example epochs=2.")
        if name == "data" and not value.strip():
            raise InputError("data= is empty; write data=PATH.")
        found[name.strip()] = value
    return found


def fields_with_max_pixels(assignments: Sequence[str] | None, max_pixels: int | None) -> dict[str, str]:
    """The `field=value` arguments, with --max-pixels as the option of the dataset."""
    found, name = named_values(assignments), f"{_DATA_OPTIONS}max_pixels"
    if max_pixels is None:
        return found
    if name in found:
        raise InputError(f"{name}={found[name]} and --max-pixels {max_pixels} are the same option; omit one.")
    return {**found, name: str(max_pixels)}


def data_options(assignments: Sequence[str] | None, max_pixels: int | None = None) -> dict[str, Any]:
    """The options of a dataset from `data_options.NAME=VALUE`, and --max-pixels; `InputError` for another name."""
    from mambar.training.fields import literal

    options: dict[str, Any] = {}
    for name, value in fields_with_max_pixels(assignments, max_pixels).items():
        if not name.startswith(_DATA_OPTIONS) or name == _DATA_OPTIONS:
            raise InputError(f"{name}={value} is not a dataset option; write data_options.NAME=VALUE.")
        options[name.removeprefix(_DATA_OPTIONS)] = literal(value)
    return options


def numbers(option: str, text: str, kind: type = float) -> tuple[Any, ...]:
    """The comma-separated numbers of an option; raises `InputError` where one is not a number."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text} must be numbers, separated by commas.") from error


def print_json(content: Any) -> None:
    """Prints one JSON object with control characters escaped."""
    typer.echo(escaped(json.dumps(content, indent=2, ensure_ascii=False)))


class Command(typer.core.TyperCommand):
    """A command that accepts the argument forms of version 0.1; its help has placeholders instead of Python types."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = str(parameter.name).upper()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments after `with_options`; refuses options without effect."""
        if not ctx.resilient_parsing:  # shell completion
            options = {
                name.removeprefix("--"): getattr(parameter, "is_flag", False)
                for parameter in self.params
                for name in parameter.opts
                if name.startswith("--")
            }
            takes_fields = any(parameter.name == "fields" for parameter in self.params)
            args = with_options(args, str(self.name), options, takes_fields=takes_fields)
        left = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            check_rules(str(self.name), ctx.params, self._given(ctx))
        return left

    def _given(self, ctx: Any) -> dict[str, str]:
        """The parameters on the command line by Python name: an option's longest form, or an argument's placeholder."""
        return {
            str(each.name): max(each.opts, key=len) if each.param_type_name == "option" else str(each.metavar)
            for each in self.params
            if getattr(ctx.get_parameter_source(each.name), "name", "") == "COMMANDLINE"
        }

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments and options with `NAME=VALUE` or `N` where typer writes `<list[str]>` or `<int>`."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [each.get_help_record(ctx) for each in self.get_params(ctx) if each.param_type_name == kind]
            rows = [(_PLACEHOLDER.sub(_placeholder, name), text) for name, text in filter(None, records)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


_PLACEHOLDER = re.compile(r" <([a-z]+)[^>]*>$")


def _placeholder(shown: re.Match[str]) -> str:
    # An argument already has its name; the range of a number follows its option.
    return {"int": " N", "float": " X"}.get(shown[1], " TEXT") if shown.string.startswith("-") else ""


def with_options(
    arguments: Sequence[str], command: str, options: Mapping[str, bool], *, takes_fields: bool
) -> list[str]:
    """The arguments with `name=value` of version 0.1 written as `--name value`.

    options: the command's option names without dashes in front, True for a flag. Logs one line for each argument that
    is rewritten. A `name=value` that is neither an option nor, with `takes_fields`, a field raises `InputError` unless
    it is an existing file; so does an option that is the name of a field.
    """
    old_names = {**OLD_NAMES[""], **OLD_NAMES.get(command, {})}
    rewritten: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        option = old_names.get(name, name.replace("_", "-"))
        if (command, name) == ("evaluate", "crop") and "." in value:
            option = "crop-pct"
        previous = rewritten[-1] if rewritten else ""
        is_value = previous.startswith("--") and options.get(previous.removeprefix("--")) is False
        if is_value or (not equals and not argument.startswith("--")):
            rewritten.append(argument)
        elif argument.startswith("--"):
            field = name.removeprefix("--").replace("-", "_")
            if takes_fields and name.removeprefix("--") not in options and _is_field(field):
                given = value if equals else next(iter(arguments[index + 1 :]), "VALUE")
                raise InputError(f"{name} is a field of the recipe, not an option; write {field}={given}.")
            rewritten.append(argument)
        elif not takes_fields and Path(argument).exists():
            rewritten.append(argument)
        elif option in options:
            flag = options[option]
            shown = f"--{option}" if flag else f"--{option} VALUE"
            logger.warning("%s= is now %s; the old form ends with version 0.3.", name, shown)
            if not flag:
                rewritten += [f"--{option}", value]
            elif _is_true(name, value):
                rewritten.append(f"--{option}")
        elif takes_fields or name.startswith(_DATA_OPTIONS):
            rewritten.append(argument)
        else:
            known = [f"--{each}" for each in options]
            hint = did_you_mean(f"--{option}", known, otherwise=f"mambar {command} --help lists them.")
            raise InputError(f"mambar {command} has no option {name!r}; {hint}")
    return rewritten


def _is_field(name: str) -> bool:
    from mambar.training.fields import field_types
    from mambar.training.recipe import Recipe, Stage

    return name.partition(".")[0] in {**field_types(Recipe), **field_types(Stage)}


def _is_true(name: str, value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in known:
        raise InputError(f"{name}={value!r} must be true or false.")
    return known[value.lower()]
