"""The interface of a training task, with defaults for everything but model, loss and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mambar.data import has_test_split, open_dataset
from mambar.data.dataset import ImageDataset
from mambar.data.loading.loaders import Batch, SampleTransform, Transform
from mambar.data.transforms.classification import EvalTransform, TrainTransform
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import RecipeError
from mambar.evaluation.metrics import LossSum
from mambar.hub.config_file import model_content
from mambar.hub.files import saved_module, write_directory
from mambar.training.loop.context import TrainingProgress
from mambar.training.recipe import Recipe, Stage


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        metrics: Numbers for the log, by name.
        details: Anything the task's report needs.
        origin: A sentence on the weights and images that were evaluated; the first paragraph of the report.
    """

    metrics: Mapping[str, float]
    details: Any = field(default=None, repr=False)
    origin: str = ""

    def to_floats(self) -> dict[str, float]:
        """The metrics as plain numbers."""
        return {name: float(value) for name, value in self.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """Services of the run for an evaluation.

    Attributes:
        device: Device of the model.
        dtype: Dtype of the model's parameters.
        autocast: Context manager for forward passes.
        all_reduce: Sum of a tensor over all processes; exact for whole numbers.
        gather_objects: Plain values of all processes, in the order of ranks, on each of them.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[object]]
    all_reduce: Callable[[Tensor], Tensor]
    gather_objects: Callable[[Any], list[Any]] = lambda value: [value]


class Task(ABC):
    """A training objective: the model made of a backbone, its loss and its evaluation.

    The module that `build_model` returns owns all parameters and buffers, also those that are not trained (an EMA
    teacher, a queue): they are moved, checkpointed and restored together.

    `loss` must compute through `model(...)`, not through methods or submodules: with parallel=ddp the forward pass of
    the wrapper prepares the gradient reduction, with parallel=fsdp its hooks gather the parameters.

    Attributes:
        metric: Name of the metric that selects the best weights.
        higher_is_better: Direction of that metric.
        dataset_kind: The kind of dataset to open (see `mambar.open_dataset`).
        cuda_graph_fields: Fields of the batch that `loss` reads, tensors of a fixed shape, if it computes nothing but a
            fixed sequence of PyTorch operations on them and on the model: then forward and backward pass may be
            replayed from a CUDA graph. It must not use `batch.key`, copy between CPU and GPU, or depend on values.
            A class that defines `loss` declares them anew.
    """

    metric: str = "val_loss"
    higher_is_better: bool = False
    dataset_kind: str = "classification"
    cuda_graph_fields: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Another loss may read other fields, or numbers on the CPU.
        if "loss" in vars(cls) and "cuda_graph_fields" not in vars(cls):
            cls.cuda_graph_fields = ()

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        self.options = dict(recipe.task_options)
        self.classes = tuple(classes)
        self.preprocessing = preprocessing_of(recipe, stage)
        self.transform = TrainTransform(
            preprocessing=self.preprocessing,
            train_crop=stage.train_crop,
            scale=stage.scale,
            crop_padding=stage.crop_padding,
            hflip=stage.hflip,
            auto_augment=stage.auto_augment,
            color_jitter=stage.color_jitter,
            random_erase_prob=stage.random_erase_prob,
        )

    @abstractmethod
    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The module to train, with the backbone (a `TokenModel`) inside; global random numbers are seeded."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Named tensors of a micro-batch; "loss" is optimized.

        Scalars are logged by name: those named `num_…` are counts, which are summed; all others are means. Global
        random numbers are seeded by `batch.key`. Tensors with a batch dimension are passed to `after_step`.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """Metrics on the validation images; each process gets a part of the batches."""

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, stage: Stage, *, classes: Sequence[str], train_set: ImageDataset | None = None
    ) -> Self:
        """The task of one stage; RecipeError for settings that it does not support."""
        return cls(recipe, stage, classes=classes)

    @classmethod
    def open_dataset(cls, recipe: Recipe, split: str, data: Any = None) -> ImageDataset:
        """A split of the recipe's dataset, or of the object `data`."""
        source = recipe.data if data is None else data
        return open_dataset(source, split, kind=cls.dataset_kind, **recipe.data_options)

    @classmethod
    def has_test_split(cls, recipe: Recipe, data: Any = None) -> bool:
        """True if the data have test images, on which the final weights are evaluated once."""
        return has_test_split(
            recipe.data if data is None else data, kind=cls.dataset_kind, data_options=recipe.data_options
        )

    @property
    def num_backbone_classes(self) -> int:
        """Classes of the backbone's own classifier; 0 builds it without one."""
        return 0

    def freeze_backbone(self, model: nn.Module, backbone: nn.Module) -> None:
        """Excludes the backbone from training."""
        backbone.requires_grad_(False)

    def train_transform(self) -> Transform | SampleTransform:
        """(stored image, key) → an image, or a mapping of named fields, such as several views.

        An object with a method `transform_sample(sample, key)` receives the whole sample in place of the image.
        """
        return self.transform

    def eval_transform(self) -> Callable[..., Tensor | Mapping[str, Any]]:
        """Stored image → an image or a mapping of named fields for `evaluate`."""
        return EvalTransform(preprocessing=self.preprocessing)

    def eval_batch_size(self, size: int) -> int:
        """Batch size of the evaluation; `size` is that of a training micro-batch."""
        return size

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """The shard on its device before it is split into micro-batches; randomness must be keyed."""
        return batch

    def after_step(  # noqa: B027  (optional)
        self, model: nn.Module, progress: TrainingProgress, outputs: Mapping[str, Tensor]
    ) -> None:
        """Called after each update of the weights, for example to update a teacher or a queue in `model`.

        It must be deterministic. `outputs` are the tensors with a batch dimension that `loss` returned, detached, for
        the whole batch in the same order on any number of processes.
        """

    def save(self, out: Path, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, val_set: ImageDataset) -> None:
        """Writes the final weights to `out`: config.json and model.safetensors of the `saved_model`."""
        saved, content = self.saved_model(model, backbone=backbone, recipe=recipe, val_set=val_set)
        write_directory(out, saved, content, force=True)

    def saved_model(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, val_set: ImageDataset
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The module whose weights are saved, and the content of its config.json; by default those of the backbone.

        Checkpoints have this config.json too, so that `mambar.load` reads the model of an interrupted run.
        """
        saved: Any = backbone
        classes = self.classes if self.num_backbone_classes else None
        content = model_content(saved, name=recipe.model, classes=classes, preprocessing=self.preprocessing)
        return saved_module(saved), content

    def report(
        self,
        out: Path,
        model: nn.Module,
        *,
        backbone: nn.Module,
        recipe: Recipe,
        result: EvalResult,
        val_set: ImageDataset,
    ) -> None:
        """Writes report.html: settings, curves, and the `report_contents`."""
        # Matplotlib is needed only here.
        from mambar.analysis import write_run_report
        from mambar.training.metrics_log import read_metrics

        write_run_report(
            out / "report.html",
            title=f"mambar: {recipe.name}",
            introduction=result.origin,
            recipe=recipe.to_flat_dict(),
            metrics={recipe.name: read_metrics(out / "metrics.jsonl")},
            **self.report_contents(model, backbone=backbone, recipe=recipe, result=result, val_set=val_set),
        )

    def report_contents(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, result: EvalResult, val_set: ImageDataset
    ) -> dict[str, Any]:
        """Arguments of `mambar.analysis.write_run_report` for this task; by default a summary of the metrics."""
        return {"summary": {name: f"{value:.4f}" for name, value in result.metrics.items()}}


@torch.inference_mode()
def mean_loss(losses: Callable[[Tensor], Tensor], batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
    """`val_loss`: the mean over all images of `losses(images)`, which gives one number for each image of a batch."""
    total, count = LossSum(), torch.zeros(1, dtype=torch.int64)
    for batch in batches:
        with context.autocast():
            found = losses(batch.to(context.device).images.to(context.dtype))
        total.add(found.double())
        count += len(batch)
    counts = context.all_reduce(torch.cat([total.counts, count])).cpu()
    return EvalResult(metrics={"val_loss": LossSum.mean(counts[:2], int(counts[2]))})


def refuse_classification_fields(stage: Stage, *, task: str) -> None:
    """Raises `RecipeError` for fields of the stage that have an effect on classification only."""
    for name in ("mixup", "cutmix", "label_smoothing", "random_erase_prob", "color_jitter"):
        if getattr(stage, name):
            raise RecipeError(f"{name}={getattr(stage, name)} has no effect on {task}; leave it at 0.")


def preprocessing_of(recipe: Recipe, stage: Stage) -> Preprocessing:
    """The preprocessing of an image in evaluation."""
    return Preprocessing(
        img_size=stage.img_size,
        crop_pct=stage.crop_pct,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
    )
