"""Recipes: what to train, one module each, and the functions that run them."""

from mambar.recipes.entry import RecipeEntry as RecipeEntry
from mambar.recipes.index import get_entry as get_entry
from mambar.recipes.index import get_recipe as get_recipe
from mambar.recipes.index import recipe_names as recipe_names
from mambar.recipes.run import resume as resume
from mambar.recipes.run import run as run
