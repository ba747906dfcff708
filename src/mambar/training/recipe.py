"""Recipe and Stage: everything that decides what a training run computes, frozen and checked.

Needs no torch. Where the run computes (device, worker processes, output directory) is not part of a recipe.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mambar.deprecated import (
    MODEL_FIELDS,
    MODEL_VALUES,
    RECIPE_FIELDS,
    STAGE_FIELDS,
    accept_old_names,
    translate,
    translate_arguments,
    translate_assignment,
    translate_value,
)
from mambar.errors import RecipeError
from mambar.messages import short_repr
from mambar.training import fields

# 1: version 0.1, whose fields had other names.
RECIPE_FORMAT: Final = 2
# Of an input; far above what any scan of an image holds in memory, below what overflows a size.
MOST_PIXELS_A_SIDE: Final = 8192
# Upper bounds of counts and of real numbers: far above any use, far below what overflows.
_MANY: Final = 10**12
_LARGE: Final = 1e12

Schedule = Literal["cosine", "linear", "constant"]
DecayGroups = Literal["official", "corrected"]
Crop = Literal["resized", "shift", "center"]
Precision = Literal["auto", "fp64", "fp32", "bf16", "fp16"]
Parallel = Literal["exact", "ddp", "fsdp"]
FinalWeights = Literal["last", "ema", "best"]


@accept_old_names(STAGE_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: one input size, one optimiser, one schedule."""

    name: str = "train"
    # Pixels: a side, or (height, width).
    img_size: int | tuple[int, int] = 224
    epochs: int = 30
    # Ends the stage early after so many steps; the schedule then spans these steps.
    max_steps: int | None = None
    # Images a step, over all processes.
    batch_size: int = 128

    # Peak learning rate; with lr_per it is lr · batch_size / lr_per (linear scaling).
    lr: float = 1e-4
    lr_base_size: int | None = None
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_epochs: float = 1.0
    # Updates of the warm-up; where given, in place of warmup_epochs.
    warmup_steps: int | None = None
    schedule: Schedule = "cosine"
    weight_decay: float = 0.05
    decay_groups: DecayGroups = "official"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # Learning rate of a layer = peak · layer_decay ^ (layers above it); 1 is off.
    layer_decay: float = 1.0
    freeze_backbone: bool = False
    clip_grad: float | None = None
    ema_decay: float | None = None
    # Micro-batches into which a shard is cut to save memory; the result is that of the whole shard.
    grad_accum_steps: int = 1

    drop_path_rate: float = 0.0
    # resized: random resized crop; shift: the evaluation crop moved by up to `padding` pixels; center.
    train_crop: Crop = "resized"
    # Smallest and largest share of the area that a resized crop keeps.
    scale: tuple[float, float] = (0.08, 1.0)
    crop_padding: int = 1
    hflip: float = 0.5
    # none, three (3-Augment), or RandAugment as rand-m9-mstd0.5-inc1.
    auto_augment: str = "none"
    color_jitter: float = 0.0
    # Probability of random erasing.
    random_erase_prob: float = 0.0
    aug_repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    label_smoothing: float = 0.0
    crop_pct: float = 1.0

    # "weights" or "ema" of the stage before (a first stage: fresh weights), or where to start from: a run, a file, a
    # hub id, a released model's name, or the checkpoints/step-… directory of a run.
    start_from: str = "weights"

    def __post_init__(self) -> None:
        _check_types(self, "stage")
        _check_stage(self)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, linear scaling included."""
        return self.lr if self.lr_base_size is None else self.lr * self.batch_size / self.lr_base_size


def _one_stage() -> tuple[Stage, ...]:
    return (Stage(),)


@accept_old_names(RECIPE_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run from start to end: model, data, stages, and the rules that every stage shares.

    `shards` fixes how a step's batch is cut: each shard owns its images, its mixup partners and its drop-path
    masks, and processes take shards round robin, so the number of processes does not change what is computed.
    """

    name: str
    model: str
    # Fields of the model's configuration that differ from the named variant's.
    config: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    # Options of the data set (for shapes: number of images, size …).
    data_options: Mapping[str, Any] = field(default_factory=dict)
    # Of pixel values in 0…1.
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    task: Literal["classification", "segmentation"] = "classification"
    # Options of the task (segmentation: the fields of `mambar.segmentation.SegmentationOptions`).
    task_options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = field(default_factory=_one_stage)
    seed: int = 0
    # auto: bf16 on a GPU that has it, else fp32.
    precision: Precision = "auto"
    compile: bool = False
    grad_checkpointing: bool = False
    num_shards: int = 1
    # exact: gradients are added shard by shard in one order, the same bits on any number of processes.
    # ddp: PyTorch's all-reduce, overlapped with the backward pass. fsdp: parameters sharded too.
    parallel: Parallel = "exact"

    # Steps between checkpoints; None saves once an epoch.
    save_every: int | None = None
    # Epochs between evaluations; the last epoch is always evaluated.
    eval_every: int = 1
    log_every: int = 10
    # Steps between looks into the layers (norms, outliers, step sizes); none looks never.
    health_every: int | None = None
    # Where numbers go beside metrics.jsonl: tensorboard, wandb, mlflow.
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    keep_checkpoints: int = 2
    on_save_error: Literal["stop", "continue"] = "stop"
    # Steps in a row without finite numbers before the run rolls back, and how often it may.
    max_consecutive_skips: int = 10
    max_rollbacks: int = 2
    # Which weights the finished run hands over.
    final_weights: FinalWeights = "last"

    def __post_init__(self) -> None:
        _check_types(self, "recipe")
        for name, least, most in (
            ("num_shards", 1, 1 << 16),
            ("eval_every", 1, _MANY),
            ("log_every", 1, _MANY),
            ("keep_checkpoints", 1, _MANY),
            ("max_consecutive_skips", 1, _MANY),
            ("max_rollbacks", 0, _MANY),
            ("save_every", 1, _MANY),
            ("health_every", 1, _MANY),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise RecipeError(f"{name}={short_repr(value)} is not allowed; it takes {least} to {most}.")
        if not all(value > 0 for value in self.std):
            raise RecipeError(f"std={short_repr(self.std)} is not allowed; it takes numbers above 0.")
        if not self.stages:
            raise RecipeError("stages is empty; a recipe needs at least one stage.")
        for index, stage in enumerate(self.stages):
            _check_split(stage, self.num_shards, f"stages.{index}." if len(self.stages) > 1 else "")
        last: Stage = list(self.stages)[-1]
        if self.final_weights == "ema" and last.ema_decay is None:
            raise RecipeError("final_weights='ema' needs ema_decay in the last stage; set it, or final_weights=last.")

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with changed fields; `epochs` is the field of a single stage, `stages.0.epochs` of one of several."""
        return self._changed(changes, from_text=False)

    def but(self, **changes: Any) -> "Recipe":
        """The old name of `replace`."""
        warnings.warn("Recipe.but is now Recipe.replace; the old name ends with version 0.3.", DeprecationWarning, 2)
        return self.replace(**changes)

    def with_overrides(self, assignments: Iterable[str]) -> "Recipe":
        """A copy changed by `field=value` texts, each typed by the field; `stage=2` leaves out what is before it."""
        changes: dict[str, str] = {}
        stage = 0
        for assignment in assignments:
            name, equals, value = assignment.partition("=")
            if not equals or not name.strip():
                raise RecipeError(f"{short_repr(assignment)} is not field=value; write for example epochs=2.")
            fields.check_length(value, name=name)
            if name.strip() == "stage":
                stage = fields.parse(int, value, name="stage")
            else:
                changes[name.strip()] = value
        return self._changed(changes, from_text=True).from_stage(stage)

    def from_stage(self, stage: int) -> "Recipe":
        """The recipe of the stages from number `stage` on, each of which is what it was."""
        if not 0 <= stage < len(self.stages):
            raise RecipeError(
                f"stage={short_repr(stage)}: recipe {self.name!r} has stages 0 to {len(self.stages) - 1}."
            )
        if stage > 0 and self.stages[stage].start_from in ("weights", "ema"):
            raise RecipeError(
                f"stage={stage} starts in the middle: say from which weights, with stages.{stage}.start_from=PATH."
            )
        return dataclasses.replace(self, stages=self.stages[stage:])

    def to_flat_dict(self) -> dict[str, Any]:
        """Every field under its dotted name, as `replace` takes it."""
        plain: dict[str, Any] = {}
        for name, value in _plain(self).items():
            if name == "stages":
                for index, stage in enumerate(value):
                    plain.update({f"stages.{index}.{key}": item for key, item in stage.items()})
            elif isinstance(value, dict):
                plain.update({f"{name}.{key}": item for key, item in value.items()})
            else:
                plain[name] = value
        return plain

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The dotted fields that differ: name → (here, there)."""
        here, there = self.to_flat_dict(), other.to_flat_dict()
        names = list(here) + [name for name in there if name not in here]
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}

    def to_json(self) -> str:
        """The whole recipe as JSON text with its format version."""
        return json.dumps({"format_version": RECIPE_FORMAT, **_plain(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "recipe") -> "Recipe":
        """The recipe of a `to_json` text; RecipeError for a newer format, an unknown, missing or repeated field."""
        return cls.from_fields(load_json_object(text, source=source), source=source)

    @classmethod
    def from_fields(cls, document: Mapping[str, Any], *, source: str = "recipe") -> "Recipe":
        """The recipe of the fields of a JSON document, `format_version` among them."""
        plain = dict(document)
        version = plain.pop("format_version", None)
        if type(version) is not int or not 1 <= version <= RECIPE_FORMAT:
            newer = type(version) is int and version > RECIPE_FORMAT
            raise RecipeError(
                f"{source} has format_version {short_repr(version)}; this version of mambar reads 1 to "
                f"{RECIPE_FORMAT}. {'Install a newer mambar.' if newer else 'Restore the file.'}"
            )
        if version == 1:
            plain = _from_version_1(plain)
        _refuse_unknown(plain, cls, source)
        stages = plain.get("stages", ())
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise RecipeError(f"{source} has stages={short_repr(stages)}; a list of stages is allowed.")
        for index, stage in enumerate(stages):
            _refuse_unknown(stage, Stage, f"{source}: stages.{index}")
        _refuse_missing(plain, cls, source)
        for index, stage in enumerate(stages):
            _refuse_missing(stage, Stage, f"{source}: stages.{index}")
        made = tuple(Stage(**_typed(Stage, stage)) for stage in stages)
        return cls(**{**_typed(cls, plain), "stages": made})

    def _changed(self, changes: Mapping[str, Any], *, from_text: bool) -> "Recipe":
        own = fields.field_types(type(self))
        tables: dict[str, dict[str, Any]] = {}
        mine: dict[str, Any] = {}
        of_stage: list[dict[str, Any]] = [{} for _ in self.stages]
        names: dict[str, str] = {}
        for given, value in changes.items():
            name = current_field_name(given, warn=not from_text)
            if name in names:
                raise RecipeError(f"{names[name]} and {given} are the same field; give {name} only.")
            names[name] = given
            head, _, tail = name.partition(".")
            if head in ("config", "data_options", "task_options") and tail:
                known = tables.setdefault(head, dict(getattr(self, head)))
                known[tail] = _table_value(name, value) if from_text else value
            elif name in own and name != "stages":
                convert = fields.parse if from_text else fields.check
                mine[name] = convert(own[name], value, name=name)
            elif name == "stages" and not from_text:
                mine[name] = value
            else:
                index, key, kind = self._stage_field(name)
                convert = fields.parse if from_text else fields.check
                of_stage[index][key] = convert(kind, value, name=name)
        if any(of_stage):
            mine["stages"] = tuple(
                dataclasses.replace(stage, **new) for stage, new in zip(self.stages, of_stage, strict=True)
            )
        return dataclasses.replace(self, **mine, **tables)

    def _stage_field(self, name: str) -> tuple[int, str, Any]:
        types = fields.field_types(Stage)
        many = len(self.stages) > 1
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "stages" and parts[1].isdecimal() and len(parts[1]) < 10:
            index, key = int(parts[1]), parts[2]
            if index >= len(self.stages):
                raise RecipeError(
                    f"{fields.cut_name(name)}: recipe {self.name!r} has stages 0 to {len(self.stages) - 1}."
                )
            if key in types:
                return index, key, types[key]
        elif name in types and not many:
            return 0, name, types[name]
        elif name in types:
            raise RecipeError(
                f"{name} stands in each of the {len(self.stages)} stages of {self.name!r}; "
                f"write stages.0.{name}=… to say which."
            )
        own = [key for key in fields.field_types(type(self)) if key != "stages"]
        prefixes = [f"stages.{index}." for index in range(len(self.stages))] if many or "." in name else [""]
        known = own + [prefix + key for prefix in prefixes for key in types]
        hint = fields.suggestion(name, known, listing=f"mambar recipe {self.name}")
        raise RecipeError(f"{short_repr(name)} is not a field of recipe {self.name!r}; {hint}")


def load_json_object(text: str, *, source: str) -> dict[str, Any]:
    """A JSON object without repeated names, else RecipeError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise RecipeError(f"{source} has the field {short_repr(repeated)} twice; remove one.")
        return found

    try:
        plain = json.loads(text, object_pairs_hook=unique)
    except RecipeError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{source} is not valid JSON ({str(error)[:80]}); restore the file.") from None
    if not isinstance(plain, dict):
        raise RecipeError(f"{source} holds a {type(plain).__name__}; a recipe is a JSON object.")
    return plain


def _from_version_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    recipe = translate(plain, RECIPE_FIELDS)
    if isinstance(recipe.get("config"), dict):
        recipe["config"] = translate(recipe["config"], MODEL_FIELDS, MODEL_VALUES)
    if isinstance(recipe.get("stages"), list):
        stages = recipe["stages"]
        recipe["stages"] = [translate(stage, STAGE_FIELDS) if isinstance(stage, dict) else stage for stage in stages]
    return recipe


def current_field_name(name: str, *, warn: bool = False) -> str:
    """The present name of a dotted field; an old name logs one line, or with `warn` raises a DeprecationWarning."""
    prefix, dot, field_name = name.rpartition(".")
    if prefix == "config":
        table = MODEL_FIELDS
    elif not prefix and field_name in RECIPE_FIELDS:
        table = RECIPE_FIELDS
    elif not prefix or prefix.startswith("stages."):
        table = STAGE_FIELDS
    else:
        return name
    if warn:
        return prefix + dot + next(iter(translate_arguments({field_name: None}, table, stacklevel=5)))
    return prefix + dot + translate_assignment(field_name, table, prefix=prefix + dot)


def _table_value(name: str, text: str) -> Any:
    """The value of a field of a table; an old value of a model's field is translated."""
    table, _, key = name.partition(".")
    old_values = MODEL_VALUES.get(key, {}) if table == "config" else {}
    return translate_value(name, text, old_values) if text in old_values else fields.literal(text)


def _check_types(instance: Stage | Recipe, where: str) -> None:
    for name, kind in fields.field_types(type(instance)).items():
        value = getattr(instance, name)
        if name == "stages":
            if not isinstance(value, tuple) or not all(isinstance(stage, Stage) for stage in value):
                raise RecipeError(f"stages of a {where} must be a tuple of Stage; got {type(value).__name__}.")
            continue
        object.__setattr__(instance, name, fields.check(kind, value, name=name))


def _check_stage(stage: Stage) -> None:
    sides = stage.img_size if isinstance(stage.img_size, tuple) else (stage.img_size,)
    low, high = stage.scale
    for good, name, allowed in (
        (min(sides) >= 1 and max(sides) <= MOST_PIXELS_A_SIDE, "img_size", f"1 to {MOST_PIXELS_A_SIDE} pixels"),
        (0 <= stage.epochs <= 10**6, "epochs", "0 or more, at most 1,000,000"),
        (stage.max_steps is None or 0 <= stage.max_steps <= _MANY, "max_steps", "0 or more, at most 10^12, or none"),
        (1 <= stage.batch_size <= 1 << 24, "batch_size", "1 or more, at most 2^24"),
        (0 < stage.lr <= _LARGE, "lr", "above 0, at most 10^12"),
        (
            stage.lr_base_size is None or 1 <= stage.lr_base_size <= 1 << 24,
            "lr_base_size",
            "1 or more, at most 2^24, or none",
        ),
        (0 <= stage.min_lr <= _LARGE, "min_lr", "0 or more, at most 10^12"),
        (0 <= stage.warmup_lr <= _LARGE, "warmup_lr", "0 or more, at most 10^12"),
        (0 <= stage.warmup_epochs <= 10**6, "warmup_epochs", "0 to 1,000,000"),
        (
            stage.warmup_steps is None or 0 <= stage.warmup_steps <= _MANY,
            "warmup_steps",
            "0 or more, at most 10^12, or none",
        ),
        (0 <= stage.weight_decay <= _LARGE, "weight_decay", "0 or more, at most 10^12"),
        (all(0 <= beta < 1 for beta in stage.betas), "betas", "two numbers from 0 to below 1"),
        (0 < stage.eps <= 1, "eps", "above 0 and at most 1"),
        (0 < stage.layer_decay <= 1, "layer_decay", "above 0 and at most 1"),
        (
            stage.clip_grad is None or 0 < stage.clip_grad <= _LARGE,
            "clip_grad",
            "above 0, at most 10^12, or none",
        ),
        (stage.ema_decay is None or 0 <= stage.ema_decay < 1, "ema_decay", "0 to below 1, or none"),
        (1 <= stage.grad_accum_steps <= 1 << 16, "grad_accum_steps", "1 to 65,536"),
        (0 <= stage.drop_path_rate < 1, "drop_path_rate", "0 to below 1"),
        (0 < low <= high <= 1, "scale", "two shares of the area in (0, 1], in rising order"),
        (0 <= stage.hflip <= 1, "hflip", "a probability, 0 to 1"),
        (0 <= stage.color_jitter <= 1, "color_jitter", "0 to 1"),
        (0 <= stage.crop_padding <= MOST_PIXELS_A_SIDE, "crop_padding", f"0 to {MOST_PIXELS_A_SIDE} pixels"),
        (0 <= stage.random_erase_prob <= 1, "random_erase_prob", "a probability, 0 to 1"),
        (1 <= stage.aug_repeats <= 1000, "aug_repeats", "1 to 1,000"),
        (0 <= stage.mixup <= 10**6, "mixup", "0 to 1,000,000"),
        (0 <= stage.cutmix <= 10**6, "cutmix", "0 to 1,000,000"),
        (0 <= stage.mixup_prob <= 1, "mixup_prob", "a probability, 0 to 1"),
        (0 <= stage.mixup_switch_prob <= 1, "mixup_switch_prob", "a probability, 0 to 1"),
        (0 <= stage.label_smoothing < 1, "label_smoothing", "0 to below 1"),
        (0 < stage.crop_pct <= 1, "crop_pct", "above 0 and at most 1"),
        (bool(stage.start_from), "start_from", "weights, ema, or a path"),
    ):
        if not good:
            raise RecipeError(f"{name}={short_repr(getattr(stage, name))} is not allowed; it takes {allowed}.")


def _check_split(stage: Stage, shards: int, prefix: str) -> None:
    parts = shards * stage.grad_accum_steps
    if stage.batch_size % parts:
        raise RecipeError(
            f"{prefix}batch_size={stage.batch_size} cannot be cut into num_shards={shards} × "
            f"grad_accum_steps={stage.grad_accum_steps}; use a multiple of {parts}."
        )


def _typed(cls: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON object in the types of the fields, without the stages."""
    kinds = fields.field_types(cls)
    return {
        name: value if name == "stages" else fields.check(kinds[name], value, name=name)
        for name, value in plain.items()
    }


def _refuse_unknown(plain: Mapping[str, Any], cls: type, source: str) -> None:
    known = fields.field_types(cls)
    for name in plain:
        if name not in known:
            hint = fields.suggestion(name, known, listing="mambar recipe NAME")
            raise RecipeError(f"{source}: {short_repr(name)} is not a field; {hint}")


def _refuse_missing(plain: Mapping[str, Any], cls: type, source: str) -> None:
    for name in fields.field_types(cls):
        if name not in plain:
            raise RecipeError(f"{source} has no field {name!r}; add it.")


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain = {entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(recipe)}
    plain["stages"] = [dataclasses.asdict(stage) for stage in recipe.stages]
    for table in ("config", "data_options", "task_options"):
        plain[table] = dict(plain[table])
    return json.loads(json.dumps(plain))
