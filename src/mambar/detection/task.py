"""The detection task: model, losses, evaluation, and the files of a run."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset, Sample
from mambar.data.detection.object_masks import decoded_masks, target_objects
from mambar.data.keys import numpy_generator, seeded_globals
from mambar.data.loading.loaders import Batch
from mambar.detection.detector import Detector, DetectorConfig, check_sides
from mambar.detection.evaluator import image_records
from mambar.detection.files import detector_content
from mambar.errors import DataError, RecipeError
from mambar.evaluation.detection import coco_classes, evaluate_records
from mambar.training import fields
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext, Task, preprocessing_of, refuse_classification_fields
from mambar.training.task_registry import register_task


@register_task("detection")
class DetectionTask(Task):
    """Faster R-CNN, or Mask R-CNN with `masks`; the metric is the AP of boxes.

    The stage's img_size is the short side of an image. Images of one batch may differ in size: they are padded to the
    largest. torchvision's samplers draw from the global generators, which are seeded with the batch's key.
    """

    metric = "box_ap"
    higher_is_better = True
    dataset_kind = "detection"

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        if not isinstance(stage.img_size, int):
            raise RecipeError(f"img_size={stage.img_size} is not the short side of an image; give one number.")
        given = {**recipe.task_options, "num_classes": len(classes), "min_size": stage.img_size}
        self.config = config = fields.task_options(DetectorConfig, given, task="detection")
        for name in ("num_classes", "min_size"):
            if name in recipe.task_options:
                raise RecipeError(f"task_options.{name} is set by the data and img_size; omit it.")
        refuse_classification_fields(stage, task="detection")
        if config.norm == "batch" and (recipe.num_shards > 1 or stage.grad_accum_steps > 1):
            raise RecipeError("task_options.norm=batch would depend on how a batch is split; use norm=group.")
        if recipe.compile or recipe.parallel == "fsdp":
            name = "compile=true" if recipe.compile else "parallel=fsdp"
            raise RecipeError(f"{name} is not supported for detection, whose images differ in size; omit it.")
        # A missing package is reported before the first epoch.
        coco_classes()
        self.classes = tuple(classes)
        self.preprocessing = preprocessing_of(recipe, stage)
        self.transform = ObjectTransform(hflip=stage.hflip, masks=config.masks, num_classes=len(classes))
        # True if all images have one size: only then are several evaluated at once, since padding has an influence.
        self.fixed_size = recipe.data == "shapes"

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone with pyramid and heads."""
        token_model: Any = backbone
        model = Detector(token_model, self.config)
        model.classes, model.preprocessing = self.classes, self.preprocessing
        self.resize = self.config.transform(self.preprocessing, model.patch_size)
        return model

    def train_transform(self) -> "ObjectTransform":
        """The image with its objects, mirrored with the stage's probability; crowds are left out."""
        return self.transform

    def eval_transform(self) -> Callable[[Tensor], Mapping[str, Any]]:
        """The image as stored; the dataset's targets are evaluated as they are."""
        return _pixels

    def eval_batch_size(self, size: int) -> int:
        """1 if images may differ in size, else `size`."""
        return size if self.fixed_size else 1

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """Images scaled, normalized and padded to one size, with their objects."""
        check_sides(batch["pixels"], self.config.max_size)
        columns = {"boxes": batch["boxes"], "labels": batch["box_labels"]}
        columns |= {"masks": batch["masks"]} if self.config.masks else {}
        targets = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        # The transform draws the short side from the global generators.
        with seeded_globals(batch.key):
            images, scaled = self.resize([pixels.float() / 255 for pixels in batch["pixels"]], targets)
        assert scaled is not None
        found = {name: [each[name] for each in scaled] for name in columns}
        # Class 0 is the background.
        found["labels"] = [labels + 1 for labels in found["labels"]]
        return dataclasses.replace(batch, fields={"images": images.tensors, "sizes": images.image_sizes, **found})

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The sum of torchvision's losses of proposals, boxes and masks, and each of them."""
        names = ("boxes", "labels", "masks") if self.config.masks else ("boxes", "labels")
        columns = zip(*(batch[name] for name in names), strict=True)
        targets = [dict(zip(names, each, strict=True)) for each in columns]
        losses = model(batch.images, batch["sizes"], targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """COCO's numbers of boxes and masks; every process evaluates all detections, so that none waits for another."""
        assert isinstance(model, Detector)
        records = []
        for batch in batches:
            with context.autocast():
                records += image_records(model, batch)
        gathered = chain.from_iterable(context.gather_objects(records))
        result = evaluate_records(gathered, self.classes, masks=self.config.masks)
        return EvalResult(metrics=result.metrics, details=result)

    def saved_model(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, val_set: ImageDataset
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The detector."""
        assert isinstance(model, Detector)
        return model, detector_content(model, name=recipe.model)

    def report_contents(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, result: EvalResult, val_set: ImageDataset
    ) -> dict[str, Any]:
        """Numbers of each class, and validation images with objects and detections."""
        from mambar.detection.detection_report import contents

        assert isinstance(model, Detector)
        return contents(model, result=result.details, val_set=val_set)


@dataclass(frozen=True, kw_only=True)
class ObjectTransform:
    """Fields of a training image: `pixels`, `boxes`, `box_labels`, and `masks` if asked for; all else is dropped."""

    hflip: float
    masks: bool
    num_classes: int

    def transform_sample(self, sample: Sample, key: int) -> dict[str, Any]:
        """The sample without crowds, mirrored with probability `hflip`."""
        objects = [each for each in target_objects(sample.targets) if not each.crowd]
        if unknown := {each.label for each in objects} - set(range(self.num_classes)):
            raise DataError(f"box_labels has {min(unknown)}; labels of {self.num_classes} classes count from 0.")
        height, width = sample.image.shape[1:]
        image = sample.image
        boxes = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(-1, 4)
        masks = decoded_masks([each.segmentation for each in objects], height, width) if self.masks else None
        if numpy_generator(key).random() < self.hflip:
            image = image.flip(-1)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            masks = None if masks is None else masks.flip(-1)
        labels = torch.tensor([each.label for each in objects], dtype=torch.int64)
        made = {"pixels": image.contiguous(), "boxes": boxes, "box_labels": labels}
        # The loader copies the other targets of the sample; None omits them.
        return {**dict.fromkeys(sample.targets), **made, **({} if masks is None else {"masks": masks})}


def _pixels(image: Tensor) -> dict[str, Any]:
    return {"pixels": image}
