"""The recipes by name: the one table that a new page is entered in."""

import importlib
from typing import Final

from mambar.errors import RecipeError
from mambar.recipes.listing import Page
from mambar.training.fields import suggestion
from mambar.training.recipe import Recipe

# Recipe → the module of its page, and the page's name there.
PAGES: Final = {
    "mambar_tiny": ("mambar_tiny", "PAGE"),
    "mambar_small": ("mambar_small", "PAGE"),
    "mambar_base": ("mambar_base", "PAGE"),
    "mambar_large": ("mambar_large", "PAGE"),
    "vim_tiny": ("vim", "TINY"),
    "vim_small": ("vim", "SMALL"),
    "vim_base": ("vim", "BASE"),
    "finetune_384": ("finetune_384", "PAGE"),
    "finetune": ("finetune", "PAGE"),
    "folder": ("folder", "PAGE"),
    "digits": ("digits", "PAGE"),
    "digits_vim": ("digits", "VIM_PAGE"),
    "shapes": ("shapes", "PAGE"),
    "upernet_shapes": ("upernet_shapes", "PAGE"),
    "upernet_shapes_vim": ("upernet_shapes", "VIM_PAGE"),
    "probe_shapes": ("upernet_shapes", "PROBE_PAGE"),
    "upernet_ade20k": ("upernet_ade20k", "PAGE"),
    "upernet_ade20k_small": ("upernet_ade20k", "SMALL_PAGE"),
    "upernet_ade20k_large": ("upernet_ade20k", "LARGE_PAGE"),
    "probe_ade20k": ("upernet_ade20k", "PROBE_PAGE"),
}


def names() -> list[str]:
    """The names of all recipes."""
    return list(PAGES)


def page(name: str) -> Page:
    """The page of a recipe; RecipeError with the nearest name for an unknown one."""
    if name not in PAGES:
        raise RecipeError(f"there is no recipe {name!r}; {suggestion(name, PAGES, listing='mambar recipe --list')}")
    module, constant = PAGES[name]
    return getattr(importlib.import_module(f"mambar.recipes.{module}"), constant)


def recipe(name: str) -> Recipe:
    """The recipe of this name."""
    return page(name).recipe
