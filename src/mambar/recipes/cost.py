"""What a recipe costs before it runs: steps, images, epochs as at 224 pixels, hours at a measured speed."""

from dataclasses import dataclass
from typing import Final

from mambar.data.loading.samplers import steps_per_epoch
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
        epochs = f"{self.epochs_at_224:.0f}" if self.epochs_at_224 >= 10 else f"{self.epochs_at_224:.2g}"
        return f"{self.steps:,} steps, {self.images:,} images, {epochs} epochs as at 224 pixels, {hours}"


def training_images(recipe: Recipe) -> int | None:
    """How many images the recipe trains on, None where only the data can tell."""
    options = recipe.data_options
    named = options.get("num_images") or TRAINING_IMAGES.get(recipe.data)
    limit = options.get("limit")
    return named if limit is None or named is None else min(limit, named)


def cost(recipe: Recipe, *, num_images: int | None = None, images_per_second: float | None = None) -> Cost:
    """The cost of all stages on `num_images` training images (None: what the recipe's data set has)."""
    parts = stage_costs(recipe, num_images=num_images, images_per_second=images_per_second)
    return Cost(
        steps=sum(part.steps for part in parts),
        images=sum(part.images for part in parts),
        epochs_at_224=sum(part.epochs_at_224 for part in parts),
        hours=None if images_per_second is None else sum(part.hours or 0.0 for part in parts),
    )


def stage_costs(recipe: Recipe, *, num_images: int | None = None, images_per_second: float | None = None) -> list[Cost]:
    """The cost of each stage, as `cost` gives that of all."""
    count = training_images(recipe) if num_images is None else num_images
    if count is None:
        raise InputError(f"data={recipe.data}: the number of its images is not known before it is opened; give it.")
    base = VARIANTS.get(recipe.model, VisionMambaConfig()).replace(**recipe.config)
    at_224, first = _length(base, 224), _length(base, recipe.stages[0].img_size)
    parts = []
    for stage in recipe.stages:
        each = steps_per_epoch(count, batch_size=stage.batch_size, repeats=stage.aug_repeats)
        planned = stage.epochs * each
        steps = planned if stage.max_steps is None else min(planned, stage.max_steps)
        images, length = steps * stage.batch_size, _length(base, stage.img_size)
        hours = None if images_per_second is None else images * (length / first) / images_per_second / 3600
        parts.append(Cost(steps=steps, images=images, epochs_at_224=images / count * length / at_224, hours=hours))
    return parts


def _length(config: VisionMambaConfig, img_size: int | tuple[int, int]) -> int:
    rows, cols = config.replace(img_size=img_size).grid
    return rows * cols + config.num_registers
