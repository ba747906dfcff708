"""What a recipe costs before it runs: steps, images, epochs as at 224 pixels, hours at a measured speed."""

from dataclasses import dataclass
from typing import Final

from mambar.data.samplers import steps_per_epoch
from mambar.errors import InputError
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.training.recipe import Recipe

# Training images of the data sets that have a fixed number.
TRAINING_IMAGES: Final = {"imagenet": 1_281_167, "digits": 1_438, "shapes": 10_000, "cifar10": 50_000}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Updates, images shown, and what these images would be in epochs at 224 pixels, counted in tokens.

    `hours` at the given images a second of the first stage; a stage of longer sequences is slower in proportion. None
    where no speed was given.
    """

    steps: int
    images: int
    epochs_at_224: float
    hours: float | None

    def line(self) -> str:
        """The cost in words."""
        hours = "hours: give images a second" if self.hours is None else f"{self.hours:,.1f} hours"
        return (
            f"{self.steps:,} steps, {self.images:,} images, {self.epochs_at_224:.0f} epochs as at 224 pixels, {hours}"
        )


def cost(recipe: Recipe, *, num_images: int | None = None, images_per_second: float | None = None) -> Cost:
    """The cost of all stages on `num_images` training images (None: what the recipe's data set has)."""
    count = num_images if num_images is not None else TRAINING_IMAGES.get(recipe.data)
    if count is None:
        raise InputError(f"data={recipe.data}: the number of its images is not known before it is opened; give it.")
    base = VARIANTS.get(recipe.model, VisionMambaConfig()).but(**recipe.config)
    at_224 = _length(base, 224)
    steps = images = 0
    epochs = seconds = 0.0
    first = _length(base, recipe.stages[0].image_size)
    for stage in recipe.stages:
        each = steps_per_epoch(count, batch_size=stage.batch_size, repeats=stage.repeats)
        planned = stage.epochs * each
        own = planned if stage.max_steps is None else min(planned, stage.max_steps)
        steps += own
        images += own * stage.batch_size
        length = _length(base, stage.image_size)
        epochs += own * stage.batch_size / count * length / at_224
        seconds += own * stage.batch_size * (length / first) / (images_per_second or 1.0)
    return Cost(
        steps=steps,
        images=images,
        epochs_at_224=epochs,
        hours=None if images_per_second is None else seconds / 3600,
    )


def _length(config: VisionMambaConfig, image_size: int | tuple[int, int]) -> int:
    rows, cols = config.but(image_size=image_size).grid
    return rows * cols + config.num_registers
