"""The recipes by name: the one table that a new page is entered in."""

import importlib
from typing import Final

from mambar.errors import RecipeError
from mambar.recipes.entry import RecipeEntry
from mambar.training.fields import suggestion
from mambar.training.recipe import Recipe

# Recipe → the module of its page, and the page's name there.
ENTRIES: Final = {
    "mambar_tiny": ("mambar_tiny", "ENTRY"),
    "mambar_small": ("mambar_small", "ENTRY"),
    "mambar_base": ("mambar_base", "ENTRY"),
    "mambar_large": ("mambar_large", "ENTRY"),
    "vim_tiny": ("vim", "TINY"),
    "vim_small": ("vim", "SMALL"),
    "vim_base": ("vim", "BASE"),
    "finetune_384": ("finetune_384", "ENTRY"),
    "finetune": ("finetune", "ENTRY"),
    "folder": ("folder", "ENTRY"),
    "digits": ("digits", "ENTRY"),
    "digits_vim": ("digits", "VIM_ENTRY"),
    "shapes": ("shapes", "ENTRY"),
    "upernet_shapes": ("upernet_shapes", "ENTRY"),
    "upernet_shapes_vim": ("upernet_shapes", "VIM_ENTRY"),
    "probe_shapes": ("upernet_shapes", "PROBE_ENTRY"),
    "upernet_ade20k": ("upernet_ade20k", "ENTRY"),
    "upernet_ade20k_small": ("upernet_ade20k", "SMALL_ENTRY"),
    "upernet_ade20k_large": ("upernet_ade20k", "LARGE_ENTRY"),
    "probe_ade20k": ("upernet_ade20k", "PROBE_ENTRY"),
}


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return list(ENTRIES)


def get_entry(name: str) -> RecipeEntry:
    """The page of a recipe; RecipeError with the nearest name for an unknown one."""
    if name not in ENTRIES:
        raise RecipeError(f"there is no recipe {name!r}; {suggestion(name, ENTRIES, listing='mambar recipe --list')}")
    module, constant = ENTRIES[name]
    return getattr(importlib.import_module(f"mambar.recipes.{module}"), constant)


def get_recipe(name: str) -> Recipe:
    """The recipe of this name."""
    return get_entry(name).recipe
