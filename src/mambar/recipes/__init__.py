"""What to run: one page a recipe, and the function that runs it."""

from mambar.recipes.index import names as names
from mambar.recipes.index import page as page
from mambar.recipes.index import recipe as recipe
from mambar.recipes.run import resume as resume
from mambar.recipes.run import run as run
