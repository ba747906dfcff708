"""Distillation: classification whose loss also compares logits or features with those of a frozen teacher.

Losses: hard and soft labels of the teacher as in DeiT (arXiv 2012.12877), or the cosine distance between its pooled
features and a linear map of the student's registers or patches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mambar.data.loading.loaders import Batch
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import CheckpointError, InputError, RecipeError
from mambar.hub.files import load
from mambar.models.timm_vit import TIMM_PREFIX, as_vision_mamba
from mambar.training import fields
from mambar.training.classification import ClassificationTask, classification_loss
from mambar.training.recipe import Recipe, Stage
from mambar.training.task import EvalResult, EvaluationContext
from mambar.training.task_registry import register_task

_ALLOWED: Final[fields.Allowed] = (
    ("0 to 1", lambda value: 0 <= value <= 1, ("weight",)),
    ("above 0, at most 100", lambda value: 0 < value <= 100, ("temperature",)),
)


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """The `task_options` of `task=distillation`."""

    # timm/NAME, a key of `TEACHERS`, or a run directory or file of mambar.
    teacher: str
    # With timm/NAME: a file with its weights; None: timm's own, which are downloaded once.
    teacher_weights: str | None = None
    # What the student matches: the teacher's class, its distribution over classes, or its features.
    target: Literal["hard", "soft", "features"] = "soft"
    # Share of the distillation loss; the rest is the cross-entropy of the labels.
    weight: float = 0.5
    # Temperature of both distributions (`soft`).
    temperature: float = 3.0
    # Student tokens whose mean is projected to the teacher's features.
    tokens: Literal["registers", "patches"] = "registers"

    def __post_init__(self) -> None:
        fields.check_fields(self, _ALLOWED, prefix="task_options.")


class Teacher:
    """A frozen model in evaluation mode, called with the student's images in its own normalization.

    It is not a submodule of the student's model, so that checkpoints do not contain it.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocessing = preprocessing

    def _inputs(self, images: Tensor, student: Preprocessing) -> Tensor:
        def shaped(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]

        self.model.to(images.device)
        pixels = images * shaped(student.std) + shaped(student.mean)
        return (pixels - shaped(self.preprocessing.mean)) / shaped(self.preprocessing.std)

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "batch channels height width"], student: Preprocessing
    ) -> Float[Tensor, "batch classes"]:
        """Logits of images that were normalized by the student's preprocessing."""
        return self.model(self._inputs(images, student)).float()

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "batch channels height width"], student: Preprocessing
    ) -> Float[Tensor, "batch dim"]:
        """The input of the teacher's classifier."""
        model: Any = getattr(self.model, "model", self.model)
        return model.forward_head(model.forward_features(self._inputs(images, student)), pre_logits=True).float()


# Teachers of your own by name: functions that return one.
TEACHERS: Final[dict[str, Callable[[], Teacher]]] = {}


def open_teacher(options: DistillationOptions) -> Teacher:
    """The teacher that the options name; an unknown name or unreadable file raises `RecipeError`."""
    if options.teacher in TEACHERS:
        return TEACHERS[options.teacher]()
    if options.teacher.startswith(TIMM_PREFIX):
        return _timm_teacher(options.teacher.removeprefix(TIMM_PREFIX), options.teacher_weights)
    try:
        model = load(options.teacher)
    except (CheckpointError, InputError) as error:
        raise RecipeError(f"task_options.teacher={options.teacher}: {error}") from error
    return Teacher(model, model.preprocessing or Preprocessing())


def _timm_teacher(name: str, weights: str | None) -> Teacher:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise RecipeError(f"task_options.teacher=timm/{name} is not a model of timm; see timm.list_models().")
    if weights is None:
        model: Any = timm.create_model(name, pretrained=True)
    else:
        model = timm.create_model(name)
        timm.models.load_checkpoint(model, weights)
    cfg = model.pretrained_cfg
    return Teacher(model, Preprocessing(mean=tuple(cfg["mean"]), std=tuple(cfg["std"])))


class FeatureStudent(nn.Module):
    """A classifier that also returns its mean token, projected to the width of the teacher's features."""

    def __init__(self, backbone: nn.Module, *, tokens: str, dim: int) -> None:
        super().__init__()
        self.backbone = as_vision_mamba(backbone, "task_options.target=features")
        self.tokens = tokens
        self.projection = nn.Linear(self.backbone.embed_dim, dim)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch dim"]]:
        """Logits and projected features."""
        model, grid = self.backbone, self.backbone.patch_embed.grid(images)
        sequence = model.forward_features(images)
        tokens: Tensor = getattr(model.registers.split(sequence, grid), self.tokens)
        return model.forward_head(sequence, grid=grid), self.projection(tokens.mean(1))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[0]


@register_task("distillation")
class DistillationTask(ClassificationTask):
    """Classification whose loss has a second term: the distance to a teacher's logits or features."""

    def __init__(self, recipe: Recipe, stage: Stage, *, classes: Sequence[str]) -> None:
        super().__init__(recipe, stage, classes=classes)
        self.distillation = fields.task_options(DistillationOptions, recipe.task_options, task="distillation")
        self.teacher = open_teacher(self.distillation)

    def build_model(self, backbone: nn.Module) -> nn.Module:
        """The backbone, with a projection to the teacher's features for `target=features`."""
        if self.distillation.target != "features":
            return backbone
        with torch.no_grad():
            size = self.preprocessing.size
            found = self.teacher.features(torch.zeros(1, len(self.preprocessing.mean), *size), self.preprocessing)
        return FeatureStudent(backbone, tokens=self.distillation.tokens, dim=found.shape[1])

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """`loss` is the weighted sum of the cross-entropy of the labels and of `distillation`."""
        options, images = self.distillation, batch["images"]
        if options.target == "features":
            logits, features = model(images)
            target = self.teacher.features(images, self.preprocessing)
            distance = 1 - functional.cosine_similarity(features.float(), target).mean()
        else:
            logits = model(images)
            distance = self._logit_loss(logits.float(), self.teacher.logits(images, self.preprocessing))
        labels = classification_loss(logits, batch["targets"])
        total = (1 - options.weight) * labels["loss"] + options.weight * distance
        return {**labels, "loss": total, "distillation": distance}

    def _logit_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if logits.shape != teacher_logits.shape:
            raise RecipeError(
                f"task_options.teacher={self.distillation.teacher} has {teacher_logits.shape[1]} classes, the data "
                f"{logits.shape[1]}; use a teacher of these classes, or task_options.target=features."
            )
        if self.distillation.target == "hard":
            return functional.cross_entropy(logits, teacher_logits.argmax(1))
        temperature = self.distillation.temperature
        student, teacher = (each.div(temperature).log_softmax(1) for each in (logits, teacher_logits))
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], context: EvaluationContext) -> EvalResult:
        """Accuracy of the student's classifier."""
        return super().evaluate(_Logits(model) if self.distillation.target == "features" else model, batches, context)
