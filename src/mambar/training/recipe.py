"""`Recipe`: the frozen, checked description of a training run.

Needs no torch. Device, worker processes and output directory are not part of a recipe.
"""

import dataclasses
import json
import math
import re
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
    log_renamed,
    translate,
    translate_arguments,
)
from mambar.errors import RecipeError
from mambar.messages import short_repr
from mambar.training import fields
from mambar.training.stage import MANY, PREVIOUS_STAGE, Stage

# `data` of a run whose dataset was passed as an object starts with this.
DATA_OBJECT: Final = "object:"
# 1: version 0.1, whose fields had other names.
RECIPE_FORMAT: Final = 3
Precision = Literal["auto", "fp64", "fp32", "bf16", "fp16"]
Parallel = Literal["exact", "ddp", "fsdp"]
FinalWeights = Literal["last", "ema", "best"]
_ALLOWED: Final[fields.Allowed] = (
    ("1 to 65,536", lambda value: 1 <= value <= 1 << 16, ("num_shards",)),
    (
        "1 or more, at most 10^12",
        lambda value: 1 <= value <= MANY,
        ("eval_every", "log_every", "save_every", "health_every", "keep_checkpoints", "max_consecutive_skips"),
    ),
    ("0 or more, at most 10^12", lambda value: 0 <= value <= MANY, ("max_rollbacks",)),
    ("0 to 2^63 - 1", lambda value: 0 <= value < 1 << 63, ("seed",)),
    ("numbers above 0", lambda values: all(value > 0 for value in values), ("std",)),
)


@accept_old_names(RECIPE_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run: model, data, stages, and the settings that all stages share.

    A step's batch is divided into `num_shards` shards. Each shard has its own images, mixup pairs and drop-path masks,
    and ranks take shards round robin. Therefore the number of processes does not change the result.
    """

    # Name of the recipe; the default run directory starts with it.
    name: str
    # Name of the model; "same": that of the model in the first stage's start_from.
    model: str
    # Fields of the model's configuration that differ from the named variant's.
    config: Mapping[str, Any] = field(default_factory=dict)
    # Name of the dataset, or the path of its directory.
    data: str = "digits"
    # Options of the dataset, for example limit (number of images).
    data_options: Mapping[str, Any] = field(default_factory=dict)
    # Mean and standard deviation of each color channel, for pixel values from 0 to 1.
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    # Interpolation of resized images.
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    # Name of the task (see `mambar.register_task`).
    task: str = "classification"
    # Options of the task; for segmentation the fields of `mambar.segmentation.SegmentationOptions`.
    task_options: Mapping[str, Any] = field(default_factory=dict)
    # The stages, in order; each starts from the weights of the one before.
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage(),))
    # Seed of every random draw.
    seed: int = 0
    # Precision of the forward and backward pass. auto: bf16 on a GPU that supports it, else fp32.
    precision: Precision = "auto"
    # Compile the model with torch.compile.
    compile: bool = False
    # On an NVIDIA GPU: replay forward and backward pass from CUDA graphs, and check a step while the next one runs.
    cuda_graphs: bool = True
    # Recompute activations in the backward pass to save memory.
    grad_checkpointing: bool = False
    # Shards of a batch; a multiple of the number of processes.
    num_shards: int = 1
    # Gradient reduction. exact: shard by shard in a fixed order, bit-identical for any number of processes;
    # ddp: PyTorch's all-reduce during the backward pass; fsdp: as ddp, with sharded parameters.
    parallel: Parallel = "exact"

    # Steps between checkpoints. None: one checkpoint per epoch.
    save_every: int | None = None
    # Epochs between evaluations; the last epoch is always evaluated.
    eval_every: int = 1
    # Steps between rows of metrics.jsonl.
    log_every: int = 10
    # Steps between logs of layer statistics (norms, outliers, step sizes). None: no statistics.
    health_every: int | None = None
    # Experiment trackers that receive the rows of metrics.jsonl.
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    # Checkpoints that are kept; older ones are removed.
    keep_checkpoints: int = 2
    # What a failed save does: stop the run, or continue without the checkpoint.
    on_save_error: Literal["stop", "continue"] = "stop"
    # Consecutive steps with NaN or Inf until the run is rolled back to a checkpoint.
    max_consecutive_skips: int = 10
    # Maximum number of rollbacks of the run.
    max_rollbacks: int = 2
    # Weights of the finished model: those of the last step, their average, or the best evaluated ones.
    final_weights: FinalWeights = "last"

    def __post_init__(self) -> None:
        fields.check_fields(self, _ALLOWED)
        if len(self.stages) == 0:
            raise RecipeError("stages is empty; a recipe needs at least one stage.")
        for index, stage in enumerate(self.stages):
            _check_split(stage, self.num_shards, f"stages.{index}." if len(self.stages) > 1 else "")
        if self.final_weights == "ema" and self.stages[-1].ema_decay is None:
            raise RecipeError("final_weights='ema' needs ema_decay in the last stage; set it, or final_weights=last.")

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with changed fields; `epochs` is the field of a single stage, `stages.0.epochs` of one of several."""
        return self._changed(changes, from_text=False)

    def but(self, **changes: Any) -> "Recipe":
        """The old name of `replace`."""
        warnings.warn("Recipe.but is now Recipe.replace; the old name ends with version 0.3.", DeprecationWarning, 2)
        return self.replace(**changes)

    def with_overrides(self, assignments: Iterable[str]) -> "Recipe":
        """A copy changed by `field=value` texts.

        `pretrained=MODEL` is `from_pretrained`, `stage=2` removes the stages before number 2.
        """
        changes: dict[str, str] = {}
        base, stage = self, 0
        for assignment in assignments:
            name, equals, value = assignment.partition("=")
            if not equals or not name.strip():
                raise RecipeError(f"{short_repr(assignment)} is not field=value; write for example epochs=2.")
            fields.check_length(value, name=name)
            if name.strip() == "stage":
                stage = fields.parse(int, value, name="stage")
            elif name.strip() == "pretrained":
                base = self.from_pretrained(value)
            else:
                changes[name.strip()] = value
        return base._changed(changes, from_text=True).from_stage(stage)

    def from_pretrained(self, source: str) -> "Recipe":
        """A copy that starts from the weights of `source` (see `Stage.start_from`) and has their architecture."""
        if source.lower() in ("true", "false", "none", ""):
            raise RecipeError(
                f"pretrained={source} is not allowed; it takes a run directory, a file, a hub id, or the name of a "
                "released model."
            )
        first = dataclasses.replace(self.stages[0], start_from=source)
        return dataclasses.replace(self, model="same", config={}, stages=(first, *self.stages[1:]))

    def from_stage(self, stage: int) -> "Recipe":
        """A copy with the stages from number `stage` on."""
        if not 0 <= stage < len(self.stages):
            raise RecipeError(
                f"stage={short_repr(stage)}: recipe {self.name!r} has stages 0 to {len(self.stages) - 1}."
            )
        if stage > 0 and self.stages[stage].start_from in PREVIOUS_STAGE:
            raise RecipeError(f"stage={stage} has no previous stage to start from; set stages.{stage}.start_from=PATH.")
        return dataclasses.replace(self, stages=self.stages[stage:])

    def to_flat_dict(self) -> dict[str, Any]:
        """All fields by dotted name, as `replace` accepts them."""
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
        """The fields that differ: dotted name → (value here, value in `other`)."""
        here, there = self.to_flat_dict(), other.to_flat_dict()
        names = list(here) + [name for name in there if name not in here]
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}

    def to_json(self) -> str:
        """The recipe as JSON text, `format_version` included."""
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
        if version < 3:
            # The numbers are the same with and without.
            plain.setdefault("cuda_graphs", True)
        _check_names(plain, cls, source)
        stages = plain["stages"]
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise RecipeError(f"{source} has stages={short_repr(stages)}; a list of stages is allowed.")
        for index, stage in enumerate(stages):
            _check_names(stage, Stage, f"{source}: stages.{index}")
        return cls(**{**plain, "stages": [Stage(**stage) for stage in stages]})

    def _changed(self, changes: Mapping[str, Any], *, from_text: bool) -> "Recipe":
        convert = fields.parse if from_text else fields.check
        own = fields.field_types(type(self))
        tables: dict[str, dict[str, Any]] = {}
        if "config" not in changes and _family(str(changes.get("model", self.model))) != _family(self.model):
            # Fields of another kind of model do not apply.
            tables["config"] = {}
        recipe_values: dict[str, Any] = {}
        stage_values: list[dict[str, Any]] = [{} for _ in self.stages]
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
                recipe_values[name] = convert(own[name], value, name=name)
            elif name == "stages" and not from_text:
                recipe_values[name] = value
            else:
                index, key, kind = self._stage_field(name)
                stage_values[index][key] = convert(kind, value, name=name)
        if any(stage_values):
            recipe_values["stages"] = tuple(
                dataclasses.replace(stage, **new) for stage, new in zip(self.stages, stage_values, strict=True)
            )
        return dataclasses.replace(self, **recipe_values, **tables)

    def _stage_field(self, name: str) -> tuple[int, str, Any]:
        """Index of the stage, name and type of a stage's field: `stages.0.epochs`, or `epochs` of a single stage."""
        types = fields.field_types(Stage)
        named = {
            f"stages.{index}.{key}": (index, key, kind)
            for index in range(len(self.stages))
            for key, kind in types.items()
        }
        if len(self.stages) == 1:
            named.update({key: (0, key, kind) for key, kind in types.items()})
        if name in named:
            return named[name]
        if name in types:
            raise RecipeError(
                f"{name} is a field of each of the {len(self.stages)} stages of {self.name!r}; "
                f"write stages.0.{name}=… for the first."
            )
        if re.fullmatch(rf"stages\.\d+\.({'|'.join(types)})", name):
            raise RecipeError(f"{fields.cut_name(name)}: recipe {self.name!r} has stages 0 to {len(self.stages) - 1}.")
        known = [*fields.field_types(type(self)), *named]
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
        for name, value in pairs:
            if isinstance(value, float) and not math.isfinite(value):
                raise RecipeError(f"{source}: {name}={value} is not allowed; it takes a finite number.")
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


def _family(model: str) -> str:
    """The kind of a model by its name: "mambar", "timm", or the name of a registered backbone."""
    if model.startswith(("mambar_", "vim_")) or model == "same":
        return "mambar"
    return "timm" if model.startswith("timm/") else model


def current_field_name(name: str, *, warn: bool = False) -> str:
    """The current name of a dotted field; an old name logs one line, or with `warn` raises a DeprecationWarning."""
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
        return prefix + dot + next(iter(translate_arguments({field_name: None}, table)))
    new = prefix + dot + table.get(field_name, field_name)
    log_renamed(f"{name}=", f"{new}=")
    return new


def _table_value(name: str, text: str) -> Any:
    """The value of a field of a table; an old value of a model's field is translated."""
    table, _, key = name.partition(".")
    new = MODEL_VALUES.get(key, {}).get(text) if table == "config" else None
    if new is None:
        return fields.literal(text)
    log_renamed(f"{name}={text}", f"{name}={new}")
    return new


def _check_split(stage: Stage, shards: int, prefix: str) -> None:
    parts = shards * stage.grad_accum_steps
    if stage.batch_size % parts:
        raise RecipeError(
            f"{prefix}batch_size={stage.batch_size} cannot be divided by num_shards={shards} × "
            f"grad_accum_steps={stage.grad_accum_steps}; use a multiple of {parts}."
        )


def _check_names(plain: Mapping[str, Any], cls: type, source: str) -> None:
    known = fields.field_types(cls)
    for name in plain:
        if name not in known:
            hint = fields.suggestion(name, known, listing="mambar recipe NAME")
            raise RecipeError(f"{source}: {short_repr(name)} is not a field; {hint}")
    # A field that is added later needs a new format version, whose translation gives it its value in older files.
    for name in known:
        if name not in plain:
            raise RecipeError(f"{source} has no field {name!r}; add it.")


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))
