"""Options that have no effect together with others; a command refuses them instead of ignoring them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambar.errors import InputError

# The values of a command's parameters by their Python names.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """Options of a command that have no effect under a condition.

    Attributes:
        options: Python names of the parameters.
        condition: True for the values with which these have no effect.
        message: The error; {option} is the option as it is written.
    """

    options: tuple[str, ...]
    condition: Callable[[Values], object]
    message: str


def _needs(*options: str, of: str, other: str) -> Rule:
    """A rule for options that have an effect only if the parameter `of` is set; `other` is how it is written."""
    return Rule(options, lambda values: not values[of], f"{{option}} needs {other}; give it, or omit {{option}}.")


def _excluded(*options: str, by: Callable[[Values], object], other: str) -> Rule:
    return Rule(options, by, f"{{option}} has no effect with {other}; omit it.")


def _sets(field: str) -> Callable[[Values], bool]:
    """A condition: the field is among the `field=value` arguments."""
    return lambda values: any(each.partition("=")[0].strip() == field for each in values["fields"] or ())


def _exists(source: str | None) -> bool:
    return source is not None and Path(source).expanduser().exists()


def _all_exist(values: Values) -> bool:
    return _exists(values["model"]) and (values["compare"] is None or _exists(values["compare"]))


def _is_sweep(table: str) -> bool:
    from mambar.paper.index import module

    return "cells" in module(table).__dict__


def is_dense(protocol: str | None) -> bool:
    """True if `--protocol` names a protocol for images with masks."""
    return any(name.strip().startswith("segmentation") for name in (protocol or "").split(","))


_PRETRAINED = "{option} is for a model's name; files and directories have their own weights. Omit it."
_VARIANT = "--data imagenet_variant"

# Command → rules in the order in which they are checked.
RULES: Mapping[str, Sequence[Rule]] = {
    "demo": (
        Rule(("fields",), _sets("data"), "data=SET: the demo has its own digits; use mambar train folder data=SET."),
    ),
    "train": (
        _needs("override", "accept_edited_recipe", of="resume", other="--resume DIR"),
        Rule(
            ("restarts",),
            lambda values: values["processes"] == 1,
            "{option} needs --processes N of two or more; give it, or omit {option}.",
        ),
    ),
    "evaluate": (
        Rule(
            ("protocol",),
            lambda values: len({is_dense(each) for each in values["protocol"].split(",") if each.strip()}) > 1,
            "{option} names protocols for images and for masks; give each kind in a command of its own.",
        ),
        _needs("features", "features_dir", "img_size", "pretrained", of="protocol", other="--protocol"),
        Rule(
            ("processes",),
            lambda values: values["processes"] > 1 and not values["protocol"],
            "{option} needs --protocol; give it, or omit {option}.",
        ),
        _needs("severities", of="corruptions", other="--corruptions"),
        Rule(
            ("out",),
            lambda values: not values["corruptions"] and not is_dense(values["protocol"]),
            "{option} needs --corruptions or a segmentation protocol; give one, or omit {option}.",
        ),
        _excluded("features", by=lambda values: is_dense(values["protocol"]), other="protocols that use the patches"),
        _excluded(
            *("crop_pct", "corruptions", "crop", "stride", "scales", "flip"),
            by=lambda values: values["protocol"],
            other="--protocol",
        ),
        _excluded("crop_pct", by=lambda values: values["corruptions"], other="--corruptions"),
        _excluded("split", "crop_pct", by=lambda values: values["data"] == "imagenet_variant", other=_VARIANT),
        Rule(("pretrained",), lambda values: _exists(values["run"]), _PRETRAINED),
    ),
    "analyze": (
        _needs("assignments", of="data", other="--data SET"),
        Rule(
            ("max_pixels",),
            lambda values: not values["data"] and not values["images"],
            "{option} needs --data or --images; give one, or omit {option}.",
        ),
        _needs("folds", of="probes", other="--probes"),
        Rule(("pretrained",), _all_exist, _PRETRAINED),
    ),
    "reproduce": (
        _excluded("name", by=lambda values: values["listing"], other="--list"),
        Rule(
            (
                *("fields", "budget", "recipe", "seeds", "other_seeds", "runs", "more", "jobs", "minutes", "fit"),
                *("out", "device", "num_workers", "max_pixels", "as_json"),
            ),
            lambda values: not values["name"],
            "{option} needs the name of a table or figure; mambar reproduce --list shows them.",
        ),
        _needs("fit", of="minutes", other="--minutes"),
        _excluded(
            *("fields", "seeds", "jobs", "num_workers"),
            by=lambda values: values["name"] == "table_costs",
            other="table_costs, which trains nothing",
        ),
        Rule(
            ("other_seeds", "minutes", "fit"),
            lambda values: not any(_is_sweep(name) for name in values["name"].split(",")),
            "{option} is for tables that train many networks, such as table_register_count; omit it.",
        ),
        Rule(
            ("more",),
            lambda values: "table_register_design" not in values["name"] and ".py" not in values["name"],
            "{option} is for table_register_design and tables of your own; omit it.",
        ),
        Rule(
            ("runs",),
            lambda values: (
                not all(name.startswith("figure_") or name == "table_secondary" for name in values["name"].split(","))
            ),
            "{option} is for figures, such as figure_norms, and table_secondary; omit it.",
        ),
        _excluded("recipe", "seeds", "jobs", by=lambda values: values["runs"], other="--runs, which trains nothing"),
        Rule(
            ("recipe", "runs"),
            lambda values: values["budget"] != "small",
            "{option} has an effect with --budget small only; add that, or omit {option}.",
        ),
        Rule(
            ("recipe",),
            lambda values: {"table_ade20k", "table_imagenet", "table_costs"} & set(values["name"].split(",")),
            "{option} has no effect with table_ade20k, table_imagenet and table_costs; omit it.",
        ),
        Rule(
            ("max_pixels",),
            lambda values: not _sets("data")(values),
            "{option} needs data=PATH; give it, or omit {option}.",
        ),
    ),
    "recipe": (
        _excluded("name", by=lambda values: values["listing"], other="--list"),
        Rule(
            ("fields", "images", "speed", "as_json"),
            lambda values: not values["name"],
            "{option} needs a recipe's name; mambar recipe --list shows them.",
        ),
        _excluded("images", "speed", by=lambda values: values["as_json"], other="--json"),
    ),
    "export": (
        Rule(
            ("opset", "scan", "int8"),
            lambda values: values["format"] != "onnx",
            "{option} is an option of --format onnx; omit it or choose that format.",
        ),
        Rule(
            ("kernels",),
            lambda values: values["format"] not in ("torch-export", "aoti"),
            "{option} is an option of --format torch-export and aoti; omit it or choose one of them.",
        ),
        Rule(
            ("img_size",),
            lambda values: values["format"] == "transformers",
            "{option} is an option of traced formats; a transformers model accepts any size.",
        ),
        Rule(
            ("max_pixels",),
            lambda values: not values["data"] and not values["int8"],
            "{option} needs --data SET, whose images are read; give it, or omit {option}.",
        ),
        Rule(("pretrained",), lambda values: _exists(values["run"]) or "/" in values["run"], _PRETRAINED),
    ),
    "serve": (Rule(("pretrained",), _all_exist, _PRETRAINED),),
    "bench": (
        _excluded("model", "img_size", "compiled", by=lambda values: values["what"] == "ops", other="bench ops"),
        _excluded("seq_len", "dtype", by=lambda values: values["what"] == "model", other="bench model"),
    ),
    "convert": (_excluded("img_size", by=lambda values: values["official"], other="--official"),),
    "info": (_needs("img_size", of="model", other="a model"),),
}


def check_rules(command: str, values: Values, given: Mapping[str, str]) -> None:
    """Raises `InputError` for the first option that was given and has no effect.

    given: the parameters on the command line, by Python name, as they are written.
    """
    for rule in RULES.get(command, ()):
        for name in rule.options:
            if name in given and rule.condition(values):
                raise InputError(rule.message.format(option=given[name]))
