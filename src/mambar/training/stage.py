"""`Stage`: one stage of a training run, with one input size, one optimizer and one schedule.

Needs no torch.
"""

from dataclasses import dataclass
from typing import Final, Literal

from mambar.deprecated import STAGE_FIELDS, accept_old_names
from mambar.training import fields

# Largest side of an input image in pixels.
MAX_SIDE: Final = 8192
# Upper bounds of counts and of real numbers: beyond any use, below what overflows.
MANY: Final = 10**12
_LARGE: Final = 1e12

# Allowed values in words, their condition, and the fields that they are for.
_ALLOWED: Final[fields.Allowed] = (
    (
        f"1 to {MAX_SIDE} pixels",
        lambda size: all(1 <= side <= MAX_SIDE for side in (size if isinstance(size, tuple) else (size,))),
        ("img_size",),
    ),
    (f"0 to {MAX_SIDE} pixels", lambda value: 0 <= value <= MAX_SIDE, ("crop_padding",)),
    ("0 or more, at most 1,000,000", lambda value: 0 <= value <= 10**6, ("epochs", "warmup_epochs", "mixup", "cutmix")),
    ("0 or more, at most 10^12", lambda value: 0 <= value <= MANY, ("max_steps", "warmup_steps")),
    ("0 or more, at most 10^12", lambda value: 0 <= value <= _LARGE, ("min_lr", "warmup_lr", "weight_decay")),
    ("above 0, at most 10^12", lambda value: 0 < value <= _LARGE, ("lr", "clip_grad")),
    ("1 or more, at most 2^24", lambda value: 1 <= value <= 1 << 24, ("batch_size", "lr_base_size")),
    ("1 to 65,536", lambda value: 1 <= value <= 1 << 16, ("grad_accum_steps",)),
    ("1 to 1,000", lambda value: 1 <= value <= 1000, ("aug_repeats",)),
    ("above 0 and at most 1", lambda value: 0 < value <= 1, ("eps", "layer_decay", "crop_pct")),
    ("0 to below 1", lambda value: 0 <= value < 1, ("ema_decay", "drop_path_rate", "label_smoothing")),
    ("two numbers from 0 to below 1", lambda pair: all(0 <= beta < 1 for beta in pair), ("betas",)),
    ("0 to 1", lambda value: 0 <= value <= 1, ("color_jitter",)),
    (
        "a probability, 0 to 1",
        lambda value: 0 <= value <= 1,
        ("hflip", "random_erase_prob", "mixup_prob", "mixup_switch_prob"),
    ),
    ("two fractions of the area in (0, 1], in rising order", lambda pair: 0 < pair[0] <= pair[1] <= 1, ("scale",)),
    ("weights, ema, or a path", bool, ("start_from",)),
)

# Values of `start_from` that mean the previous stage; all others are places.
PREVIOUS_STAGE: Final = ("weights", "ema")
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
    # Images per step, summed over all processes.
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
        fields.check_fields(self, _ALLOWED)

    def num_steps(self, steps_per_epoch: int) -> int:
        """Steps of the stage: all epochs, at most `max_steps`."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, linear scaling included."""
        return self.lr if self.lr_base_size is None else self.lr * self.batch_size / self.lr_base_size
