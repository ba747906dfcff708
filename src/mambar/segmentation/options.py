"""What a segmentation run can be told beside the recipe's own fields: `task_options`, checked when a recipe is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.data.transforms.segmentation import SegmentationTransform
from mambar.errors import RecipeError
from mambar.segmentation.inference import Inference
from mambar.training import fields


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """The decoder, its loss, the augmentation beyond a stage's, and how the run is evaluated."""

    # The decoder: see `SegmenterConfig`.
    decoder: str = "upernet"
    layers: tuple[int, ...] | None = None
    channels: int = 512
    norm: str = "group"
    dropout: float = 0.1
    broadcast: bool = False

    # The helping head: its width (0: none), the share of its loss, which of the tapped layers it reads (from 0).
    auxiliary: int = 256
    auxiliary_weight: float = 0.4
    auxiliary_layer: int = 2
    # Whether the classifiers begin with the shares of the training pixels (see `SegmenterInTraining.init_bias`).
    start_at_shares: bool = True
    # Factors of the classes' losses, in class order; none counts every class alike.
    class_weights: tuple[float, ...] | None = None
    # Share of a Dice loss that is added to the cross-entropy.
    dice: float = 0.0

    # Augmentation: see `SegmentationTransform`; the crop is the stage's img_size, flip is the stage's flip.
    resize: tuple[int, int] | None = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    most_of_one: float = 0.75
    distort: bool = True

    # Evaluation: see `Inference`; window none looks at the whole image at once.
    window: int | None = 512
    stride: int = 341
    scales: tuple[float, ...] = (1.0,)
    mirrored: bool = False
    windows_at_once: int = 4

    def __post_init__(self) -> None:
        for name, kind in fields.field_types(type(self)).items():
            object.__setattr__(self, name, fields.check(kind, getattr(self, name), name=f"task_options.{name}"))
        for name, low, high in (
            ("auxiliary", 0, 1 << 16),
            ("auxiliary_weight", 0, 100),
            ("auxiliary_layer", 0, 3),
            ("dice", 0, 100),
        ):
            if not low <= getattr(self, name) <= high:
                raise RecipeError(
                    f"task_options.{name}={getattr(self, name)} is not allowed; it takes {low} to {high}."
                )
        if self.class_weights is not None and not all(weight >= 0 for weight in self.class_weights):
            raise RecipeError(f"task_options.class_weights={self.class_weights} must be 0 or more.")
        # The parts check the rest.
        self.inference()
        self.transform(img_size=8, flip=0.5, preprocessing=Preprocessing())

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "SegmentationOptions":
        """The options named in a recipe; RecipeError with the nearest name for an unknown one."""
        known = fields.field_types(cls)
        for name in given:
            if name not in known:
                raise RecipeError(
                    f"task_options.{name}: segmentation has no such option; {fields.suggestion(name, known)}"
                )
        kinds: dict[str, Any] = {name: known[name] for name in given}
        checked = {name: fields.check(kind, given[name], name=f"task_options.{name}") for name, kind in kinds.items()}
        return cls(**checked)

    def inference(self) -> Inference:
        """How an image is looked at in evaluation."""
        return Inference(
            crop=self.window,
            stride=self.stride,
            resize=self.resize,
            scales=self.scales,
            flip=self.mirrored,
            batch=self.windows_at_once,
        )

    def transform(
        self, *, img_size: int | tuple[int, int], flip: float, preprocessing: Preprocessing
    ) -> SegmentationTransform:
        """The training augmentation; images smaller than the crop are filled up with the mean color."""
        mean = [round(255 * value) for value in preprocessing.mean] * 3
        return SegmentationTransform(
            img_size=img_size,
            resize=self.resize,
            ratio=self.ratio,
            max_class_fraction=self.most_of_one,
            hflip=flip,
            distort=self.distort,
            fill=(mean[0], mean[1], mean[2]),
        )
