"""All recipes by name. Add a new recipe module to this table."""

import importlib
from typing import Final

from mambar.errors import RecipeError
from mambar.recipes.entry import RecipeEntry
from mambar.training.fields import suggestion
from mambar.training.recipe import Recipe
from mambar.user_module import import_file, is_python_file

# Recipe name → its module, and the name of its entry in the module.
ENTRIES: Final = {
    "mambar_tiny": ("mambar.recipes.mambar_imagenet", "TINY"),
    "mambar_small": ("mambar.recipes.mambar_imagenet", "SMALL"),
    "mambar_base": ("mambar.recipes.mambar_imagenet", "BASE"),
    "mambar_large": ("mambar.recipes.mambar_imagenet", "LARGE"),
    "vim_tiny": ("mambar.recipes.vim", "TINY"),
    "vim_small": ("mambar.recipes.vim", "SMALL"),
    "vim_base": ("mambar.recipes.vim", "BASE"),
    "finetune_384": ("mambar.recipes.mambar_imagenet", "FINETUNE_384"),
    "finetune": ("mambar.recipes.finetune", "ENTRY"),
    "folder": ("mambar.recipes.folder", "ENTRY"),
    "pretrain_autoregressive": ("mambar.recipes.pretrain_autoregressive", "ENTRY"),
    "pretrain_masked": ("mambar.recipes.pretrain_masked", "ENTRY"),
    "digits": ("mambar.recipes.digits", "ENTRY"),
    "digits_vim": ("mambar.recipes.digits", "VIM_ENTRY"),
    "tiny_imagenet": ("mambar.recipes.tiny_imagenet", "ENTRY"),
    "tiny_imagenet_vim": ("mambar.recipes.tiny_imagenet", "VIM_ENTRY"),
    "shapes": ("mambar.recipes.shapes", "ENTRY"),
    "maskrcnn": ("mambar.recipes.maskrcnn", "ENTRY"),
    "fasterrcnn_coco": ("mambar.recipes.rcnn_coco", "ENTRY"),
    "maskrcnn_coco": ("mambar.recipes.rcnn_coco", "MASK_ENTRY"),
    "fasterrcnn_shapes": ("mambar.recipes.rcnn_shapes", "ENTRY"),
    "maskrcnn_shapes": ("mambar.recipes.rcnn_shapes", "MASK_ENTRY"),
    "upernet": ("mambar.recipes.upernet", "ENTRY"),
    "upernet_shapes": ("mambar.recipes.upernet_shapes", "ENTRY"),
    "upernet_shapes_vim": ("mambar.recipes.upernet_shapes", "VIM_ENTRY"),
    "probe_shapes": ("mambar.recipes.upernet_shapes", "PROBE_ENTRY"),
    "upernet_ade20k": ("mambar.recipes.upernet_ade20k", "ENTRY"),
    "upernet_ade20k_small": ("mambar.recipes.upernet_ade20k", "SMALL_ENTRY"),
    "upernet_ade20k_large": ("mambar.recipes.upernet_ade20k", "LARGE_ENTRY"),
    "probe_ade20k": ("mambar.recipes.upernet_ade20k", "PROBE_ENTRY"),
}


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return list(ENTRIES)


def get_entry(name: str) -> RecipeEntry:
    """The entry of a recipe, by name or by the path of a Python file with ENTRY or RECIPE."""
    if is_python_file(name):
        return _entry_of_file(name)
    if name not in ENTRIES:
        hint = suggestion(name, ENTRIES, listing="mambar recipe --list")
        raise RecipeError(f"there is no recipe {name!r}; {hint}")
    module, constant = ENTRIES[name]
    return getattr(importlib.import_module(module), constant)


def get_recipe(name: str) -> Recipe:
    """The recipe of this name, or of the Python file at this path."""
    return get_entry(name).recipe


def _entry_of_file(name: str) -> RecipeEntry:
    found = import_file(name).__dict__
    entry, recipe = found.get("ENTRY"), found.get("RECIPE")
    if isinstance(entry, RecipeEntry):
        return entry
    if isinstance(recipe, Recipe):
        return RecipeEntry(recipe=recipe, title=recipe.name, source=name, command=f"mambar train {name}")
    raise RecipeError(f"{name} has neither ENTRY nor RECIPE; define RECIPE = Recipe(...).")
