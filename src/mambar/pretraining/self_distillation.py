"""Self-distillation without labels: a student matches its moving average on other crops of an image.

Method of DINO (arXiv 2104.14294): the teacher gets two global crops, the student also several local ones; the teacher's
outputs are centered by their moving average and sharpened by a low temperature.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.data.keys import key as derived_key
from mambar.data.loading.loaders import Batch
from mambar.errors import RecipeError
from mambar.training import fields
from mambar.training.loop.context import TrainingProgress
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext, Task, mean_loss
from mambar.training.task_registry import register_task

_ALLOWED: Final[fields.Allowed] = (
    ("1 to 65,536", lambda value: 1 <= value <= 1 << 16, ("hidden_dim", "bottleneck_dim", "out_dim")),
    ("0 to 32", lambda value: 0 <= value <= 32, ("num_local_crops",)),
    ("8 to 1,024 pixels", lambda value: 8 <= value <= 1024, ("local_size",)),
    ("two fractions in (0, 1], in rising order", lambda pair: 0 < pair[0] <= pair[1] <= 1, ("local_scale",)),
    ("above 0, at most 10", lambda value: 0 < value <= 10, ("student_temperature", "teacher_temperature")),
    ("0 to below 1", lambda value: 0 <= value < 1, ("center_momentum", "teacher_momentum")),
)


@dataclass(frozen=True, kw_only=True)
class SelfDistillationOptions:
    """The `task_options` of `task=self_distillation`; the global crops use img_size and scale of the stage."""

    # Number, side in pixels, and range of the area (as a fraction of the image) of the local crops.
    num_local_crops: int = 8
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.25)
    # Widths of the projection head.
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    out_dim: int = 65_536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    # Moving averages of the center and of the teacher's weights, per step.
    center_momentum: float = 0.9
    teacher_momentum: float = 0.996

    def __post_init__(self) -> None:
        fields.check_fields(self, _ALLOWED, prefix="task_options.")


class ProjectionHead(nn.Module):
    """Three layers, a normalized bottleneck, and a linear layer with weight vectors of norm 1."""

    def __init__(self, dim: int, options: SelfDistillationOptions) -> None:
        super().__init__()
        hidden, bottleneck = options.hidden_dim, options.bottleneck_dim
        layers = [
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        ]
        self.mlp = nn.Sequential(*layers)
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(options.out_dim, bottleneck), std=0.02))

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """The logits of the softmax."""
        return functional.linear(functional.normalize(self.mlp(x), dim=1), functional.normalize(self.weight, dim=1))


class StudentTeacher(nn.Module):
    """Student, teacher and center: everything that a checkpoint stores."""

    center: Tensor

    def __init__(self, backbone: nn.Module, options: SelfDistillationOptions) -> None:
        super().__init__()
        module: Any = backbone
        self.backbone, self.head = module, ProjectionHead(module.head_hidden_size, options)
        self.teacher = copy.deepcopy(nn.ModuleList([self.backbone, self.head])).requires_grad_(False)
        self.register_buffer("center", torch.zeros(options.out_dim))

    def train(self, mode: bool = True) -> "StudentTeacher":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, global_crops: Sequence[Float[Tensor, "batch channels height width"]], local_crops: Sequence[Tensor]
    ) -> tuple[list[Float[Tensor, "batch out"]], list[Float[Tensor, "batch out"]]]:
        """The student's outputs for all crops, the teacher's for the global ones."""
        student = [self.head(self.backbone(images)) for images in [*global_crops, *local_crops]]
        backbone, head = self.teacher
        with torch.no_grad():
            teacher = [head(backbone(images)) for images in global_crops]
        return student, teacher


@register_task("self_distillation")
class SelfDistillationTask(Task):
    """Cross-entropy between the teacher's and the student's distributions on different crops of an image."""

    dataset_kind = "images"

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.distillation = fields.task_options(SelfDistillationOptions, recipe.task_options, task="self_distillation")
        size = self.distillation.local_size
        if self.distillation.num_local_crops and size > min(self.preprocessing.size):
            raise RecipeError(
                f"task_options.local_size={size} exceeds img_size={stage.img_size}, the size of the global crops; "
                "lower it, or raise img_size."
            )
        preprocessing = replace(self.preprocessing, img_size=size)
        scale = self.distillation.local_scale
        self.local_transform = replace(self.transform, preprocessing=preprocessing, train_crop="resized", scale=scale)

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """Student and teacher."""
        return StudentTeacher(backbone, self.distillation)

    def train_transform(self) -> Callable[..., Mapping[str, Any]]:
        """Crops `global_0`, `global_1`, `local_0`, …, each with its own random numbers."""

        # The words "large" and "small" are part of the keys; others would draw other crops.
        def crops(image: Tensor, key: int) -> dict[str, Tensor]:
            found = {f"global_{index}": self.transform(image, derived_key(key, "large", index)) for index in range(2)}
            for index in range(self.distillation.num_local_crops):
                found[f"local_{index}"] = self.local_transform(image, derived_key(key, "small", index))
            return found

        return crops

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The loss, and the teacher's outputs, from which `after_step` updates the center."""
        global_crops = [batch[f"global_{index}"] for index in range(2)]
        local_crops = [batch[f"local_{index}"] for index in range(self.distillation.num_local_crops)]
        student, teacher = model(global_crops, local_crops)
        pairs = [
            self._cross_entropy(output, target, model).mean()
            for index, target in enumerate(teacher)
            for other, output in enumerate(student)
            if index != other
        ]
        return {"loss": torch.stack(pairs).mean(), "teacher": torch.stack(teacher, 1).mean(1)}

    def _cross_entropy(self, output: Tensor, target: Tensor, model: Any) -> Float[Tensor, "batch"]:
        center = getattr(model, "module", model).center
        probabilities = ((target.float() - center) / self.distillation.teacher_temperature).softmax(1)
        return -(probabilities * (output.float() / self.distillation.student_temperature).log_softmax(1)).sum(1)

    def after_step(self, model: nn.Module, progress: TrainingProgress, outputs: Mapping[str, Tensor]) -> None:
        """Moves the center towards the teacher's mean output, and the teacher towards the student."""
        net: Any = model
        net.center.lerp_(outputs["teacher"].float().mean(0), 1 - self.distillation.center_momentum)
        student = [*net.backbone.parameters(), *net.head.parameters()]
        with torch.no_grad():
            for teacher, own in zip(net.teacher.parameters(), student, strict=True):
                teacher.lerp_(own, 1 - self.distillation.teacher_momentum)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """The cross-entropy between teacher and student on whole validation images."""

        def losses(images: Tensor) -> Tensor:
            (output,), (target,) = model([images], [])
            return self._cross_entropy(output, target, model)

        return mean_loss(losses, batches, context)
