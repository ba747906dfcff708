"""Image classification as a training task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.data.dataset import ImageDataset
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch
from mambar.data.transforms.classification import EvalTransform
from mambar.data.transforms.mixup import Mixup, soft_targets
from mambar.evaluation.classification import ClassificationResult, evaluate
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext, Task
from mambar.training.task_registry import register_task


@register_task("classification")
class ClassificationTask(Task):
    """Image classification: soft-target cross-entropy, mixup and cutmix per shard, top-1 and top-5."""

    metric = "top1"
    higher_is_better = True
    cuda_graph_fields = ("images", "targets")

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.label_smoothing = stage.label_smoothing
        self.mixup: Mixup | None = None
        if stage.mixup or stage.cutmix:
            self.mixup = Mixup(
                mixup_alpha=stage.mixup,
                cutmix_alpha=stage.cutmix,
                prob=stage.mixup_prob,
                switch_prob=stage.mixup_switch_prob,
                label_smoothing=stage.label_smoothing,
                num_classes=len(classes),
            )

    @property
    def num_backbone_classes(self) -> int:
        """All classes: the backbone's head is the classifier."""
        return len(self.classes)

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone itself."""
        return backbone

    def freeze_backbone(self, model: nn.Module, backbone: nn.Module) -> None:
        """Excludes all parameters from training but those of the head."""
        get_classifier = getattr(backbone, "get_classifier", nn.Module)
        head = set(get_classifier().parameters())
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.startswith("head.") or parameter in head)

    def train_transform(self) -> Callable[[Tensor, int], Tensor]:
        """The stage's augmentation. Without erasing, which acts on normalized images, pixels stay uint8."""
        return self.transform if self.transform.random_erase_prob else self.transform.pixels

    def eval_transform(self) -> Callable[[Tensor], Tensor]:
        """The evaluation crop, as uint8."""
        return EvalTransform(preprocessing=self.preprocessing).pixels

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """Normalized images and soft targets; mixup and cutmix use the shard's own key."""
        images = self._normalized(batch.images)
        if self.mixup is None:
            targets = soft_targets(batch.labels, len(self.classes), smoothing=self.label_smoothing)
        else:
            mixup_key = key(seed, "mixup", epoch, batch.step, batch.shard)
            images, targets = self.mixup(images, batch.labels, mixup_key)
        return batch.replace(images=images, targets=targets)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy in float32; correct is an image whose largest logit is that of its largest target."""
        return classification_loss(model(batch["images"]), batch["targets"])

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """Top-1, top-5 (fractions) and the mean cross-entropy; details are a `ClassificationResult`."""
        result: ClassificationResult = evaluate(
            model,
            batches,
            classes=self.classes,
            device=context.device,
            prepare=lambda images: self._normalized(images).to(context.dtype),
            autocast=context.autocast,
            all_reduce=context.all_reduce,
            gather_objects=context.gather_objects,
        )
        metrics = {"top1": result.top1, "top5": result.top5, "val_loss": result.loss}
        return EvalResult(metrics=metrics, details=result)

    def report_contents(
        self, model: nn.Module, *, backbone: nn.Module, recipe: Recipe, result: EvalResult, val_set: ImageDataset
    ) -> dict[str, Any]:
        """Confusion matrix, example predictions and token norms."""
        from mambar.training.classification_report import contents

        return contents(backbone, recipe=recipe, result=result, val_set=val_set, preprocessing=self.preprocessing)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images) if images.dtype == torch.uint8 else images


def classification_loss(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> dict[str, Tensor]:
    """The mean cross-entropy and the number of correct images, computed in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.to(logits.dtype)
    value = -(targets * logits.log_softmax(1)).sum(1).mean()
    num_correct = (logits.detach().argmax(1) == targets.argmax(1)).sum()
    return {"loss": value, "num_correct": num_correct}
