"""Options of the segmentation task: the `task_options` of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.data.transforms.segmentation import SegmentationTransform
from mambar.deprecated import accept_old_names, translate_arguments
from mambar.errors import RecipeError
from mambar.segmentation.decoders import SegmenterConfig
from mambar.segmentation.inference import Inference
from mambar.training import fields

# Names of version 0.1, in recipe files and as arguments.
OLD_NAMES: Final = {
    "auxiliary": "aux_channels",
    "auxiliary_weight": "aux_weight",
    "auxiliary_layer": "aux_layer",
    "start_at_shares": "init_class_bias",
    "dice": "dice_weight",
    "most_of_one": "max_class_fraction",
    "window": "eval_crop",
    "stride": "eval_stride",
    "scales": "eval_scales",
    "mirrored": "eval_flip",
    "windows_at_once": "eval_batch_size",
}


@accept_old_names(OLD_NAMES)
@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """Options of decoder, loss, augmentation and evaluation."""

    # Decoder: see `SegmenterConfig`.
    decoder: str = "upernet"
    layers: tuple[int, ...] | None = None
    channels: int = 512
    norm: str = "group"
    dropout: float = 0.1
    broadcast: bool = False

    # Auxiliary head: its channels (0 for none), its loss weight, and which of the decoder's layers it reads (from 0).
    aux_channels: int = 256
    aux_weight: float = 0.4
    aux_layer: int = 2
    # Initialize classifier biases from class frequencies (see `SegmenterInTraining.init_bias`).
    init_class_bias: bool = True
    # Loss weight of each class; None for equal weights.
    class_weights: tuple[float, ...] | None = None
    # Weight of a Dice loss added to the cross-entropy.
    dice_weight: float = 0.0

    # Augmentation: see `SegmentationTransform`; crop size and flip probability are img_size and hflip of the stage.
    resize: tuple[int, int] | None = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_class_fraction: float = 0.75
    distort: bool = True

    # Evaluation: see `Inference`.
    eval_crop: int | None = 512
    eval_stride: int = 341
    eval_scales: tuple[float, ...] = (1.0,)
    eval_flip: bool = False
    eval_batch_size: int = 4

    def __post_init__(self) -> None:
        fields.check_fields(self, prefix="task_options.")
        for name, high in {"aux_channels": 1 << 16, "aux_weight": 100, "aux_layer": 3, "dice_weight": 100}.items():
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise RecipeError(f"task_options.{name}={value} is not allowed; it takes 0 to {high}.")
        if self.class_weights is not None and not all(weight >= 0 for weight in self.class_weights):
            raise RecipeError(f"task_options.class_weights={self.class_weights} must be 0 or more.")
        # These constructors check their own fields.
        self.inference()
        self.transform(img_size=8, flip=0.5, preprocessing=Preprocessing())

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "SegmentationOptions":
        """The options of a recipe's `task_options`, also with names of version 0.1; RecipeError for an unknown name."""
        return fields.task_options(cls, translate_arguments(given, OLD_NAMES), task="segmentation")

    def decoder_config(self, num_classes: int) -> SegmenterConfig:
        """The configuration of the decoder."""
        names = ("decoder", "layers", "channels", "norm", "dropout", "broadcast")
        return SegmenterConfig(num_classes=num_classes, **{name: getattr(self, name) for name in names})

    def inference(self) -> Inference:
        """The inference settings of evaluation."""
        return Inference(
            crop=self.eval_crop,
            stride=self.eval_stride,
            resize=self.resize,
            scales=self.eval_scales,
            flip=self.eval_flip,
            batch_size=self.eval_batch_size,
        )

    def transform(
        self, *, img_size: int | tuple[int, int], flip: float, preprocessing: Preprocessing
    ) -> SegmentationTransform:
        """The training augmentation; images smaller than the crop are padded with the mean color."""
        mean = [round(255 * value) for value in preprocessing.mean] * 3
        return SegmentationTransform(
            img_size=img_size,
            resize=self.resize,
            ratio=self.ratio,
            max_class_fraction=self.max_class_fraction,
            hflip=flip,
            distort=self.distort,
            fill=(mean[0], mean[1], mean[2]),
        )
