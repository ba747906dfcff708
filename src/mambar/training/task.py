"""What a task adds to a backbone: how to wrap it, what its loss is, how it is measured. Classification is one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mambar.data.keys import key
from mambar.data.loaders import Batch
from mambar.data.mixup import Mixup, soft_targets
from mambar.data.preprocessing import Preprocessing
from mambar.evaluation.classification import ClassificationResult, evaluate
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
    hits: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An evaluation: numbers for the log, and whatever the report wants to show of it."""

    metrics: Mapping[str, float]
    detail: Any = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """What an evaluation needs of the run: device, precision, and the sum over processes."""

    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    total: Callable[[Tensor], Tensor]


@runtime_checkable
class Task(Protocol):
    """A task: `metric` (higher is better) chooses the best weights."""

    @property
    def metric(self) -> str:
        """The name of the number that chooses the best weights."""
        ...

    def wrap(self, backbone: nn.Module) -> nn.Module:
        """The model to train, made of the backbone."""
        ...

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Prepared:
        """A shard on its device as the loss wants it; all its randomness is keyed."""
        ...

    def loss(self, model: nn.Module, batch: Prepared) -> Loss:
        """The mean loss of a micro-batch."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> Measured:
        """Measures the model on held-out images."""
        ...


class ClassificationTask:
    """Image classification: soft-target cross-entropy, mixup and cutmix a shard, top-1 and top-5."""

    metric = "top1"

    def __init__(
        self, *, classes: Sequence[str], preprocessing: Preprocessing, mixing: Mixup | None, smoothing: float
    ) -> None:
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
                mixup=stage.mixup,
                cutmix=stage.cutmix,
                prob=stage.mix_prob,
                switch=stage.switch_prob,
                smoothing=stage.smoothing,
                num_classes=len(classes),
            )
        return cls(
            classes=classes,
            preprocessing=preprocessing_of(recipe, stage),
            mixing=mixing,
            smoothing=stage.smoothing,
        )

    def wrap(self, backbone: nn.Module) -> nn.Module:
        """The backbone itself: its head is the classifier."""
        return backbone

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

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> Measured:
        """Top-1, top-5 (fractions) and the mean cross-entropy; the detail is a `ClassificationResult`."""
        result: ClassificationResult = evaluate(
            model,
            batches,
            classes=self.classes,
            device=context.device,
            prepare=self._normalized,
            autocast=context.autocast,
            total=context.total,
        )
        metrics = {"top1": result.top1, "top5": result.top5, "val_loss": result.loss}
        return Measured(metrics=metrics, detail=result)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images) if images.dtype == torch.uint8 else images


def preprocessing_of(recipe: Recipe, stage: Stage) -> Preprocessing:
    """What an image goes through before the model at evaluation."""
    return Preprocessing(
        image_size=stage.image_size,
        crop=stage.eval_crop,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
    )
