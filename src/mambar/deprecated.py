"""Names of version 0.1 that are still accepted: in files always, as arguments until version 0.3.

Files with `format_version` 1 are translated silently. Python keywords raise a `DeprecationWarning`, `field=value` on
the command line logs one line; both name the new field.
"""

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mambar.errors import InputError

logger = logging.getLogger(__name__)

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

# Old name → new name.
MODEL_FIELDS = {
    "dim": "embed_dim",
    "state": "d_state",
    "taps": "d_conv",
    "in_channels": "in_chans",
    "image_size": "img_size",
    "drop_path": "drop_path_rate",
    "dropout": "proj_drop_rate",
    "head_dropout": "drop_rate",
    "bias": "proj_bias",
    "reduce": "register_reduction",
    "average": "average_directions",
}
# Field → old value → new value.
MODEL_VALUES = {"head": {"mean": "register_mean", "first": "token", "patches": "avg", "none": "avg_all"}}
PREPROCESSING_FIELDS = {"image_size": "img_size", "crop": "crop_pct"}
STAGE_FIELDS = {
    "image_size": "img_size",
    "drop_path": "drop_path_rate",
    "clip": "clip_grad",
    "accumulation": "grad_accum_steps",
    "crop": "train_crop",
    "padding": "crop_padding",
    "flip": "hflip",
    "augment": "auto_augment",
    "jitter": "color_jitter",
    "erasing": "random_erase_prob",
    "repeats": "aug_repeats",
    "mix_prob": "mixup_prob",
    "switch_prob": "mixup_switch_prob",
    "smoothing": "label_smoothing",
    "eval_crop": "crop_pct",
    "lr_per": "lr_base_size",
}
RECIPE_FIELDS = {
    "shards": "num_shards",
    "track": "trackers",
    "deliver": "final_weights",
    "rollbacks": "max_rollbacks",
    "max_skips": "max_consecutive_skips",
}
# The argument of functions that load data.
LOADER_ARGUMENTS = {"workers": "num_workers"}

ANALYSIS_FIELDS = {"colours": "colormap", "keep": "max_maps", "added_registers": "test_time_registers"}
ANALYSIS_VALUES = {"vector": {"registers": "register_mean", "first": "token", "patches": "avg"}}


def translate(
    fields: Mapping[str, Any], names: Mapping[str, str], values: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The fields under their new names and with their new values; a field given under both names keeps the new."""
    renamed = {names[name]: value for name, value in fields.items() if name in names}
    renamed.update((name, value) for name, value in fields.items() if name not in names)
    for name, table in (values or {}).items():
        if isinstance(renamed.get(name), str):
            renamed[name] = table.get(renamed[name], renamed[name])
    return renamed


def translate_arguments(
    fields: Mapping[str, Any],
    names: Mapping[str, str],
    values: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """`translate` with a `DeprecationWarning` for each old name or value; `InputError` for a field given twice."""
    for old, new in ((name, names[name]) for name in fields if name in names):
        if new in fields:
            raise InputError(f"{old} and {new} were both given and are the same field; give {new} only.")
        _warn(f"{old}= is now {new}=; the old name ends with version 0.3.")
    for name, table in (values or {}).items():
        value = fields.get(name)
        if isinstance(value, str) and value in table:
            _warn(f"{name}={value!r} is now {name}={table[value]!r}; the old value ends with version 0.3.")
    return translate(fields, names, values)


def _warn(message: str) -> None:
    """Warns at the caller's line outside this package, because by default Python shows only warnings of user code."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("mambar", "dataclasses"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DeprecationWarning, level)


def log_renamed(old: str, new: str) -> None:
    """Logs one line if a command-line argument is written in an old form."""
    if new != old:
        logger.warning("%s is now %s; the old form ends with version 0.3.", old, new)


def accept_old_names(
    names: Mapping[str, str], values: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[Decorated], Decorated]:
    """A decorator for a function or a dataclass whose keyword arguments were renamed."""

    def decorate(target: Decorated) -> Decorated:
        function: Any = target.__init__ if isinstance(target, type) else target

        @functools.wraps(function)
        def accepting(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **translate_arguments(kwargs, names, values))

        if isinstance(target, type):
            target.__init__ = accepting  # type: ignore[method-assign]
            return target  # type: ignore[return-value]
        return accepting  # type: ignore[return-value]

    return decorate
