"""`Stage`: one stage of a training run, with one input size, one optimizer and one schedule.

Needs no torch.
"""

from dataclasses import dataclass
from typing import Final, Literal

from mambar.deprecated import STAGE_FIELDS, accept_old_names
from mambar.errors import RecipeError
from mambar.messages import short_repr
from mambar.training import fields

# Largest side of an input image in pixels.
MAX_SIDE: Final = 8192
# Upper bounds of counts and of real numbers: beyond any use, below what overflows.
MANY: Final = 10**12
_LARGE: Final = 1e12

Schedule = Literal["cosine", "linear", "constant"]
DecayGroups = Literal["official", "corrected"]
Crop = Literal["resized", "shift", "center"]


@accept_old_names(STAGE_FIELDS)
@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training. Counts are checked and finite; an invalid value raises RecipeError."""

    # Name of the stage in logs.
    name: str = "train"
    # Input size in pixels: one side of a square, or (height, width).
    img_size: int | tuple[int, int] = 224
    # Epochs of the stage.
    epochs: int = 30
    # Maximum number of steps; the schedule spans them. None: all epochs.
    max_steps: int | None = None
    # Images a step, summed over all processes.
    batch_size: int = 128

    # Peak learning rate. With lr_base_size the peak is lr * batch_size / lr_base_size (linear scaling).
    lr: float = 1e-4
    # Batch size that lr refers to, in images. None: no scaling.
    lr_base_size: int | None = None
    # Learning rate at the end of the schedule.
    min_lr: float = 1e-6
    # Learning rate at the first warm-up step.
    warmup_lr: float = 1e-6
    # Length of the warm-up in epochs.
    warmup_epochs: float = 1.0
    # Length of the warm-up in steps. None: warmup_epochs.
    warmup_steps: int | None = None
    # Shape of the learning rate after the warm-up.
    schedule: Schedule = "cosine"
    # Weight decay of AdamW.
    weight_decay: float = 0.05
    # Parameters with weight decay. official: as in the released code, A_log included; corrected: without A_log.
    decay_groups: DecayGroups = "official"
    # Coefficients of AdamW's moving averages.
    betas: tuple[float, float] = (0.9, 0.999)
    # Epsilon of AdamW.
    eps: float = 1e-8
    # Factor of the learning rate from one layer to the layer before it; 1 means equal rates.
    layer_decay: float = 1.0
    # Train the head only.
    freeze_backbone: bool = False
    # Maximum L2 norm of the gradient. None: no clipping.
    clip_grad: float | None = None
    # Decay of the exponential moving average of the weights, per step. None: no average.
    ema_decay: float | None = None
    # Micro-batches that a shard is divided into to save memory; the gradient is that of the whole shard.
    grad_accum_steps: int = 1

    # Stochastic depth rate of the last block, rising linearly from 0.
    drop_path_rate: float = 0.0
    # Training crop. resized: random resized crop; shift: the evaluation crop shifted by up to crop_padding pixels;
    # center: the evaluation crop.
    train_crop: Crop = "resized"
    # Smallest and largest area of a resized crop, as a fraction of the image.
    scale: tuple[float, float] = (0.08, 1.0)
    # Maximum shift of train_crop="shift" in pixels.
    crop_padding: int = 1
    # Probability of a horizontal flip.
    hflip: float = 0.5
    # Augmentation: none, three (3-Augment), or RandAugment as rand-m9-mstd0.5-inc1.
    auto_augment: str = "none"
    # Strength of random brightness, contrast and saturation, 0 to 1.
    color_jitter: float = 0.0
    # Probability of random erasing.
    random_erase_prob: float = 0.0
    # Times that an image is repeated within an epoch, each with another augmentation.
    aug_repeats: int = 1
    # Alpha of mixup's beta distribution; 0 is off.
    mixup: float = 0.0
    # Alpha of cutmix's beta distribution; 0 is off.
    cutmix: float = 0.0
    # Probability that a batch is mixed.
    mixup_prob: float = 1.0
    # Probability of cutmix instead of mixup, if both are on.
    mixup_switch_prob: float = 0.5
    # Label smoothing, 0 to below 1.
    label_smoothing: float = 0.0
    # Evaluation: side of the center crop as a fraction of the resized image.
    crop_pct: float = 1.0

    # Initial weights. "weights" or "ema": those of the previous stage (random for a first stage). Otherwise a run
    # directory, a file, a hub id, the name of a released model, or a checkpoints/step-N directory of a run.
    start_from: str = "weights"

    def __post_init__(self) -> None:
        for name, kind in fields.field_types(type(self)).items():
            object.__setattr__(self, name, fields.check(kind, getattr(self, name), name=name))
        _check_stage(self)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, linear scaling included."""
        return self.lr if self.lr_base_size is None else self.lr * self.batch_size / self.lr_base_size


def _check_stage(stage: Stage) -> None:
    sides = stage.img_size if isinstance(stage.img_size, tuple) else (stage.img_size,)
    low, high = stage.scale
    for good, name, allowed in (
        (min(sides) >= 1 and max(sides) <= MAX_SIDE, "img_size", f"1 to {MAX_SIDE} pixels"),
        (0 <= stage.epochs <= 10**6, "epochs", "0 or more, at most 1,000,000"),
        (stage.max_steps is None or 0 <= stage.max_steps <= MANY, "max_steps", "0 or more, at most 10^12, or none"),
        (1 <= stage.batch_size <= 1 << 24, "batch_size", "1 or more, at most 2^24"),
        (0 < stage.lr <= _LARGE, "lr", "above 0, at most 10^12"),
        (
            stage.lr_base_size is None or 1 <= stage.lr_base_size <= 1 << 24,
            "lr_base_size",
            "1 or more, at most 2^24, or none",
        ),
        (0 <= stage.min_lr <= _LARGE, "min_lr", "0 or more, at most 10^12"),
        (0 <= stage.warmup_lr <= _LARGE, "warmup_lr", "0 or more, at most 10^12"),
        (0 <= stage.warmup_epochs <= 10**6, "warmup_epochs", "0 to 1,000,000"),
        (
            stage.warmup_steps is None or 0 <= stage.warmup_steps <= MANY,
            "warmup_steps",
            "0 or more, at most 10^12, or none",
        ),
        (0 <= stage.weight_decay <= _LARGE, "weight_decay", "0 or more, at most 10^12"),
        (all(0 <= beta < 1 for beta in stage.betas), "betas", "two numbers from 0 to below 1"),
        (0 < stage.eps <= 1, "eps", "above 0 and at most 1"),
        (0 < stage.layer_decay <= 1, "layer_decay", "above 0 and at most 1"),
        (
            stage.clip_grad is None or 0 < stage.clip_grad <= _LARGE,
            "clip_grad",
            "above 0, at most 10^12, or none",
        ),
        (stage.ema_decay is None or 0 <= stage.ema_decay < 1, "ema_decay", "0 to below 1, or none"),
        (1 <= stage.grad_accum_steps <= 1 << 16, "grad_accum_steps", "1 to 65,536"),
        (0 <= stage.drop_path_rate < 1, "drop_path_rate", "0 to below 1"),
        (0 < low <= high <= 1, "scale", "two fractions of the area in (0, 1], in rising order"),
        (0 <= stage.hflip <= 1, "hflip", "a probability, 0 to 1"),
        (0 <= stage.color_jitter <= 1, "color_jitter", "0 to 1"),
        (0 <= stage.crop_padding <= MAX_SIDE, "crop_padding", f"0 to {MAX_SIDE} pixels"),
        (0 <= stage.random_erase_prob <= 1, "random_erase_prob", "a probability, 0 to 1"),
        (1 <= stage.aug_repeats <= 1000, "aug_repeats", "1 to 1,000"),
        (0 <= stage.mixup <= 10**6, "mixup", "0 to 1,000,000"),
        (0 <= stage.cutmix <= 10**6, "cutmix", "0 to 1,000,000"),
        (0 <= stage.mixup_prob <= 1, "mixup_prob", "a probability, 0 to 1"),
        (0 <= stage.mixup_switch_prob <= 1, "mixup_switch_prob", "a probability, 0 to 1"),
        (0 <= stage.label_smoothing < 1, "label_smoothing", "0 to below 1"),
        (0 < stage.crop_pct <= 1, "crop_pct", "above 0 and at most 1"),
        (bool(stage.start_from), "start_from", "weights, ema, or a path"),
    ):
        if not good:
            raise RecipeError(f"{name}={short_repr(getattr(stage, name))} is not allowed; it takes {allowed}.")
