"""Cost of a recipe before it runs: steps, images, equivalent epochs at 224 pixels, hours at a measured speed."""

from dataclasses import dataclass
from typing import Final

from mambar.data.loading.samplers import steps_per_epoch
from mambar.errors import InputError
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.training.recipe import Recipe

# Number of training images of the datasets that have a fixed one.
TRAINING_IMAGES: Final = {"imagenet": 1_281_167, "digits": 1_438, "shapes": 10_000, "cifar10": 50_000}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a recipe or of one of its stages.

    Attributes:
        steps: Optimizer steps.
        images: Images processed.
        epochs_at_224: Epochs at 224 pixels with as many tokens.
        hours: Time at the given images/s of the first stage; the speed of other stages is scaled by sequence length.
            None if no speed was given.
    """

    steps: int
    images: int
    epochs_at_224: float
    hours: float | None

    def line(self) -> str:
        """The cost as one line of text."""
        hours = "hours: need images/s" if self.hours is None else f"{self.hours:,.1f} hours"
        epochs = f"{self.epochs_at_224:.0f}" if self.epochs_at_224 >= 10 else f"{self.epochs_at_224:.2g}"
        return f"{self.steps:,} steps, {self.images:,} images, {epochs} epochs at 224 pixels, {hours}"


def training_images(recipe: Recipe) -> int | None:
    """Number of training images of a recipe, None if it is unknown before the data are opened."""
    options = recipe.data_options
    named = options.get("num_images") or TRAINING_IMAGES.get(recipe.data)
    limit = options.get("limit")
    return named if limit is None or named is None else min(limit, named)


def cost(recipe: Recipe, *, num_images: int | None = None, images_per_second: float | None = None) -> Cost:
    """The cost of all stages on `num_images` training images (None: those of the recipe's dataset)."""
    parts = stage_costs(recipe, num_images=num_images, images_per_second=images_per_second)
    return Cost(
        steps=sum(part.steps for part in parts),
        images=sum(part.images for part in parts),
        epochs_at_224=sum(part.epochs_at_224 for part in parts),
        hours=None if images_per_second is None else sum(part.hours or 0.0 for part in parts),
    )


def stage_costs(recipe: Recipe, *, num_images: int | None = None, images_per_second: float | None = None) -> list[Cost]:
    """The cost of each stage; see `cost`."""
    count = training_images(recipe) if num_images is None else num_images
    if count is None:
        raise InputError(f"data={recipe.data}: its number of images is unknown before it is opened; give num_images.")
    base = VARIANTS.get(recipe.model)
    if base is None and recipe.model != "same":
        # Of other backbones only the patch size is needed.
        base = VisionMambaConfig(patch_size=recipe.config.get("patch_size", 16), num_registers=0)
    else:
        base = (base or VisionMambaConfig()).replace(**recipe.config)
    at_224, first = _length(base, 224), _length(base, recipe.stages[0].img_size)
    parts = []
    for stage in recipe.stages:
        each = steps_per_epoch(count, batch_size=stage.batch_size, repeats=stage.aug_repeats)
        steps = stage.num_steps(each)
        images, length = steps * stage.batch_size, _length(base, stage.img_size)
        hours = None if images_per_second is None else images * (length / first) / images_per_second / 3600
        parts.append(Cost(steps=steps, images=images, epochs_at_224=images / count * length / at_224, hours=hours))
    return parts


def _length(config: VisionMambaConfig, img_size: int | tuple[int, int]) -> int:
    rows, cols = config.replace(img_size=img_size).grid
    return rows * cols + config.num_registers
