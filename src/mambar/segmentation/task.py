"""The semantic segmentation task: model, loss, evaluation, and the files of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.data.registry import open_dataset
from mambar.data.segmentation.masks import IGNORE
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.errors import RecipeError
from mambar.segmentation.evaluator import evaluate
from mambar.segmentation.files import segmenter_content
from mambar.segmentation.losses import dice_loss, pixel_accuracy_sum, pixel_cross_entropy
from mambar.segmentation.options import SegmentationOptions
from mambar.segmentation.segmenter import Segmenter
from mambar.segmentation.training_model import SegmenterInTraining
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext, Task, preprocessing_of, refuse_classification_fields
from mambar.training.task_registry import register_task

# Training images from which class frequencies are estimated.
_NUM_FREQUENCY_IMAGES: Final = 64
# Built-in datasets of images of one size, which are evaluated in batches.
_FIXED_SIZE_DATASETS: Final = ("shapes", "mosaics")


@register_task("segmentation")
class SegmentationTask(Task):
    """Semantic segmentation with cross-entropy (and Dice) loss and an auxiliary head; the metric is mIoU."""

    metric = "miou"
    higher_is_better = True
    dataset_kind = "segmentation"
    cuda_graph_fields = ("images", "targets")

    def __init__(
        self, recipe: Recipe, stage: Stage, *, classes: Sequence[str], train_set: ImageDataset | None = None
    ) -> None:
        self.options = options = SegmentationOptions.of(recipe.task_options)
        if options.norm == "batch" and (recipe.num_shards > 1 or stage.grad_accum_steps > 1):
            raise RecipeError(
                f"task_options.norm=batch with num_shards={recipe.num_shards}, grad_accum_steps="
                f"{stage.grad_accum_steps}: the result would depend on how a batch is split; use norm=group, "
                "or one shard without accumulation."
            )
        refuse_classification_fields(stage, task="segmentation")
        weights = options.class_weights
        if weights is not None and len(weights) != len(classes):
            raise RecipeError(
                f"task_options.class_weights has {len(weights)} values for {len(classes)} classes; give one each."
            )
        self.weights = None if weights is None else torch.tensor(weights)
        self.classes = tuple(classes)
        self.preprocessing = preprocessing_of(recipe, stage)
        self.transform = options.transform(img_size=stage.img_size, flip=stage.hflip, preprocessing=self.preprocessing)
        self.init_key = key(recipe.seed, "decoder", stage.name)
        # True if all validation images have one size.
        self.fixed_size = recipe.data in _FIXED_SIZE_DATASETS
        # Estimates the class frequencies that initialize the classifier biases.
        self.class_frequencies = partial(_class_frequencies, recipe, len(classes), train_set)

    @classmethod
    def open_dataset(cls, recipe: Recipe, split: str, data: Any = None) -> ImageDataset:
        """Images with masks; the labels are the fourth channel."""
        return MaskChannelDataset(super().open_dataset(recipe, split, data))

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, stage: Stage, *, classes: Sequence[str], train_set: ImageDataset | None = None
    ) -> Self:
        """The task of one stage; raises RecipeError for options that conflict with fields of the stage."""
        return cls(recipe, stage, classes=classes, train_set=train_set)

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone with a decoder and, unless `aux_channels=0`, an auxiliary head."""
        options = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.init_key)
            token_model: Any = backbone
            segmenter = Segmenter(token_model, options.decoder_config(len(self.classes)))
            model = SegmenterInTraining(
                segmenter, auxiliary=options.aux_channels, layer=options.aux_layer, dropout=options.dropout
            )
        if options.init_class_bias:
            model.init_bias(self.class_frequencies())
        return model

    def train_transform(self) -> Callable[[Tensor, int], Tensor]:
        """Random resizing, crop, flip and photometric distortion of image and labels together."""
        return self.transform

    def eval_transform(self) -> Callable[[Tensor], Tensor]:
        """The identity: images are evaluated at their own size."""
        return _identity

    def eval_batch_size(self, size: int) -> int:
        """1 if images may differ in size, else `size`."""
        return size if self.fixed_size else 1

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """Normalized images and per-pixel labels."""
        images = self.preprocessing.normalize(batch.images[:, :3])
        return batch.replace(images=images, targets=batch.images[:, 3].long())

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The weighted sum of the losses of decoder and auxiliary head, and the sum of the images' pixel accuracies."""
        logits, *auxiliary = model(batch.images)
        value = self._loss_of(logits, batch["targets"])
        for other in auxiliary:
            value = value + self.options.aux_weight * self._loss_of(other, batch["targets"])
        return {"loss": value, "num_correct": pixel_accuracy_sum(logits.detach(), batch["targets"]).to(value.dtype)}

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
        value = pixel_cross_entropy(logits, labels, weights=self.weights)
        return value + self.options.dice_weight * dice_loss(logits, labels) if self.options.dice_weight else value

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """mIoU, pixel accuracy, mean accuracy, boundary F-score; details are a `SegmentationResult`."""
        result = evaluate(
            _segmenter(model),
            batches,
            classes=self.classes,
            preprocessing=self.preprocessing,
            inference=self.options.inference(),
            autocast=context.autocast,
            all_reduce=context.all_reduce,
        )
        metrics = {
            "miou": result.miou,
            "pixel_accuracy": result.pixel_accuracy,
            "mean_accuracy": result.mean_accuracy,
            "boundary_f": result.boundary_f,
            "val_loss": result.loss or 0.0,
        }
        return EvalResult(metrics=metrics, details=result)

    def saved_model(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, val_set: ImageDataset
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The segmenter without the auxiliary head."""
        assert isinstance(val_set, MaskChannelDataset)
        segmenter = _segmenter(model)
        segmenter.classes, segmenter.palette = self.classes, val_set.palette
        segmenter.preprocessing = self.preprocessing
        return segmenter, segmenter_content(segmenter, name=recipe.model, inference=self.options.inference())

    def report_contents(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, result: EvalResult, val_set: ImageDataset
    ) -> dict[str, Any]:
        """Metrics per class, confusion matrix, the best and the worst images."""
        from mambar.segmentation.segmentation_report import contents

        assert isinstance(val_set, MaskChannelDataset)
        return contents(_segmenter(model), self.options.inference(), result=result.details, val_set=val_set)


def _segmenter(model: nn.Module) -> Segmenter:
    assert isinstance(model, SegmenterInTraining)
    return model.segmenter


def _class_frequencies(recipe: Recipe, num_classes: int, train_set: ImageDataset | None) -> Tensor:
    """The frequency of each class among the labeled pixels of some training images, mixed with 10 % uniform."""
    if isinstance(train_set, MaskChannelDataset):
        dataset = train_set.dataset
    else:
        dataset = open_dataset(recipe.data, "train", kind="segmentation", **recipe.data_options)
    pixels = torch.zeros(IGNORE + 1, dtype=torch.float64)
    for sample in evenly_spaced_samples(dataset, _NUM_FREQUENCY_IMAGES):
        if sample.mask is not None:
            pixels += torch.bincount(sample.mask.flatten(), minlength=IGNORE + 1)
    counts = pixels[:num_classes]
    return (0.9 * counts / counts.sum().clamp(min=1) + 0.1 / num_classes).float()


def _identity(image: Tensor) -> Tensor:
    return image
