"""A recipe as a page: where it comes from, the exact command, the expected number, and what is ours in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mambar.errors import RecipeError
from mambar.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """One recipe with what a reader wants to know of it.

    `not_published` names the fields that neither paper nor code publish, each with the reason for our choice.
    """

    recipe: Recipe
    title: str
    # Where the values come from.
    source: str
    command: str
    # The number to expect, with its origin; "not run" where nobody here has run it.
    expected: str
    not_published: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.recipe.to_flat_dict()
        for name in self.not_published:
            if name not in known:
                raise RecipeError(f"page {self.recipe.name!r} explains {name!r}, which the recipe does not have.")
