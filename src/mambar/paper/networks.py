"""The network, data and schedule of each budget."""

from collections.abc import Mapping
from typing import Final

from mambar.errors import InputError
from mambar.models.config import VisionMambaConfig, variant
from mambar.paper.context import Context
from mambar.recipes.digits import RECIPE as DIGITS
from mambar.recipes.index import get_recipe
from mambar.recipes.mambar_imagenet import BASE
from mambar.training.recipe import Recipe

# A network that a GPU trains in minutes on 32-pixel photographs, several in parallel. It has 256 tokens, more than
# ImageNet's 196 at 224 pixels.
_SMALL = Recipe(
    name="small",
    model="mambar_tiny_patch16_224",
    config={"patch_size": 2, "embed_dim": 128, "depth": 8},
    data="cifar10",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    stages=DIGITS.stages,
    eval_every=4,
    health_every=250,
    log_every=20,
    keep_checkpoints=1,
).replace(img_size=32, epochs=20, batch_size=256, lr=1.5e-3, warmup_lr=1e-6, crop_padding=4, hflip=0.5)
# One register in the middle, read without reduction.
VIM: Final[Mapping[str, object]] = {"num_registers": 1, "placement": "middle", "head": "token", "register_reduction": 1}


def base_recipe(context: Context) -> Recipe:
    """The recipe that a table varies: digits (smoke), 32-pixel photographs or the given data (small), ImageNet (full).

    Fields of the context change it. Raises `InputError` if the budget needs data that were not given.
    """
    if context.budget == "smoke":
        recipe = DIGITS.replace(config={"patch_size": 2, "embed_dim": 16, "depth": 2}, epochs=1, max_steps=8)
    elif context.data is None:
        wanted = "ImageNet" if context.budget == "full" else "CIFAR-10 (the .npz files' folder), or a folder"
        raise InputError(f"The budget {context.budget} needs data=PATH of {wanted}.")
    else:
        recipe = BASE.recipe if context.budget == "full" else _small(context)
    return with_data(recipe, context).with_overrides(context.fields)


def _small(context: Context) -> Recipe:
    return _SMALL if context.recipe is None else get_recipe(context.recipe)


def with_data(recipe: Recipe, context: Context) -> Recipe:
    """The recipe with the data of the context, if any were given."""
    return recipe if context.data is None else recipe.replace(data=str(context.data))


def registers(context: Context, recipe: Recipe) -> dict[str, object]:
    """Register fields of Mamba-R: 12 registers, or those of the context's recipe; 4 for `smoke`."""
    config = model_config(recipe)
    count = 4 if context.budget == "smoke" else 12 if context.recipe is None else config.num_registers
    divisor = reduction(config.embed_dim, count, head_width(context, recipe))
    return {"num_registers": count, "register_reduction": divisor}


def head_width(context: Context, recipe: Recipe) -> int:
    """Features that the register head reads: 3 · D, or those of the context's recipe; D for `smoke`."""
    config = model_config(recipe)
    if context.budget == "smoke":
        return config.embed_dim
    if context.recipe is None:
        return 3 * config.embed_dim
    return config.num_registers * (config.embed_dim // config.register_reduction)


def with_model(recipe: Recipe, fields: Mapping[str, object]) -> Recipe:
    """The recipe with fields of the model changed."""
    return recipe.replace(config={**recipe.config, **fields})


def reduction(dim: int, num_registers: int, width: int) -> int:
    """The divisor of dim for which n registers have the number of features nearest to `width`."""
    divisors = [r for r in range(1, dim + 1) if dim % r == 0]
    return min(divisors, key=lambda r: abs(num_registers * (dim // r) - width))


def model_config(recipe: Recipe) -> VisionMambaConfig:
    """The configuration of the recipe's model."""
    return variant(recipe.model).replace(**recipe.config)
