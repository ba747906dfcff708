"""What a task adds to a backbone: how to wrap it, what its loss is, how it is measured. Classification is one."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mambar.data import open_dataset
from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.transforms.classification import EvalTransform, TrainTransform
from mambar.data.transforms.mixup import Mixup, soft_targets
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.evaluation.classification import ClassificationResult, evaluate
from mambar.hub.files import save_model
from mambar.models.vision_mamba import VisionMamba
from mambar.training.loop.optim import freeze_backbone
from mambar.training.recipe import Recipe, Stage


@dataclass(frozen=True)
class Prepared:
    """A shard's images and targets on the device, ready for the model."""

    images: Float[Tensor, "batch channels height width"]
    targets: Shaped[Tensor, "batch *target"]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> "Prepared":
        """Some of its images."""
        return Prepared(self.images[start:stop], self.targets[start:stop])


@dataclass(frozen=True)
class Loss:
    """The mean loss of some images, and of them how many the model got right (0 where that has no meaning)."""

    value: Float[Tensor, ""]
    num_correct: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """An evaluation: numbers for the log, and whatever the report wants to show of it."""

    metrics: Mapping[str, float]
    details: Any = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """What an evaluation needs of the run: device, precision, and the sum over processes."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast: Callable[[], AbstractContextManager[object]]
    all_reduce: Callable[[Tensor], Tensor]


@runtime_checkable
class Task(Protocol):
    """A task: `metric` (higher is better) chooses the best weights.

    `backbone_prefix` stands in front of the backbone's parameter names in the model that `wrap` makes.
    """

    metric: str
    backbone_prefix: str

    @classmethod
    def open(cls, recipe: Recipe, split: str) -> ImageDataset:
        """The data of a split, as the transforms below take them."""
        ...

    @classmethod
    def of(cls, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> "Task":
        """The task of one stage; whatever the recipe says of it is checked here."""
        ...

    @property
    def backbone_classes(self) -> int:
        """The classes of the backbone's own head; 0 where nothing reads it."""
        ...

    def wrap(self, backbone: VisionMamba) -> nn.Module:
        """The model to train, made of the backbone; fresh parameters follow the recipe's seed."""
        ...

    def freeze(self, model: nn.Module) -> None:
        """Takes the backbone out of training."""
        ...

    def train_transform(self) -> Callable[[Tensor, int], Tensor]:
        """(a stored image, its key) → the augmented one."""
        ...

    def eval_transform(self) -> Callable[[Tensor], Tensor]:
        """A stored image → what `evaluate` takes."""
        ...

    def evaluation_batch(self, size: int) -> int:
        """Images at a time in evaluation, where training takes `size`."""
        ...

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Prepared:
        """A shard on its device as the loss wants it; all its randomness is keyed."""
        ...

    def loss(self, model: nn.Module, batch: Prepared) -> Loss:
        """The mean loss of a micro-batch."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """Measures the model on held-out images."""
        ...

    def save(self, out: Path, model: nn.Module, *, recipe: Recipe, val_set: ImageDataset) -> None:
        """Writes the finished model (on the CPU) into the run directory."""
        ...

    def report(self, out: Path, model: nn.Module, *, recipe: Recipe, result: EvalResult, val_set: ImageDataset) -> None:
        """Writes the report of the model that `save` has written."""
        ...


# Recipe.task → where its class is; named, not imported: a task may stand above training.
TASKS: Final = {
    "classification": ("mambar.training.task", "ClassificationTask"),
    "segmentation": ("mambar.segmentation.task", "SegmentationTask"),
}


def task_class(name: str) -> type[Any]:
    """The class of the task (a `Task`) that a recipe names."""
    module, attribute = TASKS[name]
    return getattr(importlib.import_module(module), attribute)


class ClassificationTask:
    """Image classification: soft-target cross-entropy, mixup and cutmix a shard, top-1 and top-5."""

    metric = "top1"
    backbone_prefix = ""

    def __init__(
        self,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        mixing: Mixup | None,
        smoothing: float,
        transform: TrainTransform | None = None,
    ) -> None:
        self.transform = transform or TrainTransform(preprocessing=preprocessing)
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.mixing = mixing
        self.smoothing = smoothing

    @classmethod
    def of(cls, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> "ClassificationTask":
        """The task of one stage."""
        mixing = None
        if stage.mixup or stage.cutmix:
            mixing = Mixup(
                mixup_alpha=stage.mixup,
                cutmix_alpha=stage.cutmix,
                prob=stage.mixup_prob,
                switch_prob=stage.mixup_switch_prob,
                label_smoothing=stage.label_smoothing,
                num_classes=len(classes),
            )
        return cls(
            classes=classes,
            preprocessing=preprocessing_of(recipe, stage),
            mixing=mixing,
            smoothing=stage.label_smoothing,
            transform=train_transform_of(recipe, stage),
        )

    @classmethod
    def open(cls, recipe: Recipe, split: str) -> ImageDataset:
        """The labelled images that the recipe names."""
        return open_dataset(recipe.data, split, **recipe.data_options)

    @property
    def backbone_classes(self) -> int:
        """All: the backbone's head is the classifier."""
        return len(self.classes)

    def wrap(self, backbone: VisionMamba) -> nn.Module:
        """The backbone itself."""
        return backbone

    def freeze(self, model: nn.Module) -> None:
        """Lets only the head train."""
        assert isinstance(model, VisionMamba)
        freeze_backbone(model)

    def train_transform(self) -> Callable[[Tensor, int], Tensor]:
        """The stage's augmentation. Without erasing, which acts on normalised images, pixels travel as bytes."""
        return self.transform if self.transform.random_erase_prob else self.transform.pixels

    def eval_transform(self) -> Callable[[Tensor], Tensor]:
        """The evaluation crop, as bytes."""
        return EvalTransform(preprocessing=self.preprocessing).pixels

    def evaluation_batch(self, size: int) -> int:
        """As many as in training."""
        return size

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Prepared:
        """Normalised images (where the loader gave bytes) and soft targets, mixed under the shard's own key."""
        images = self._normalized(batch.images)
        if self.mixing is None:
            return Prepared(images, soft_targets(batch.labels, len(self.classes), smoothing=self.smoothing))
        return Prepared(*self.mixing(images, batch.labels, key(seed, "mixup", epoch, batch.step, batch.shard)))

    def loss(self, model: nn.Module, batch: Prepared) -> Loss:
        """Cross-entropy in float32; a hit is an image whose largest target is the largest logit."""
        logits = model(batch.images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = batch.targets.to(logits.dtype)
        value = -(targets * logits.log_softmax(1)).sum(1).mean()
        hits = (logits.detach().argmax(1) == targets.argmax(1)).sum().to(logits.dtype)
        return Loss(value, hits)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """Top-1, top-5 (fractions) and the mean cross-entropy; the detail is a `ClassificationResult`."""
        result: ClassificationResult = evaluate(
            model,
            batches,
            classes=self.classes,
            device=context.device,
            prepare=lambda images: self._normalized(images).to(context.dtype),
            autocast=context.autocast,
            total=context.all_reduce,
        )
        metrics = {"top1": result.top1, "top5": result.top5, "val_loss": result.loss}
        return EvalResult(metrics=metrics, details=result)

    def save(self, out: Path, model: nn.Module, *, recipe: Recipe, val_set: ImageDataset) -> None:
        """config.json and model.safetensors."""
        assert isinstance(model, VisionMamba)
        save_model(out, model, name=recipe.model, classes=self.classes, preprocessing=self.preprocessing, force=True)
        model.classes, model.preprocessing = self.classes, self.preprocessing

    def report(self, out: Path, model: nn.Module, *, recipe: Recipe, result: EvalResult, val_set: ImageDataset) -> None:
        """report.html with confusion matrix, examples and token norms."""
        from mambar.training.report import write_report

        assert isinstance(model, VisionMamba)
        write_report(out, recipe=recipe, model=model, eval_result=result, val_set=val_set)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images) if images.dtype == torch.uint8 else images


def preprocessing_of(recipe: Recipe, stage: Stage) -> Preprocessing:
    """What an image goes through before the model at evaluation."""
    return Preprocessing(
        img_size=stage.img_size,
        crop_pct=stage.crop_pct,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
    )


def train_transform_of(recipe: Recipe, stage: Stage) -> TrainTransform:
    """The augmentation of a stage."""
    return TrainTransform(
        preprocessing=preprocessing_of(recipe, stage),
        train_crop=stage.train_crop,
        scale=stage.scale,
        crop_padding=stage.crop_padding,
        hflip=stage.hflip,
        auto_augment=stage.auto_augment,
        color_jitter=stage.color_jitter,
        random_erase_prob=stage.random_erase_prob,
    )
