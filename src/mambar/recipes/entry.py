"""A recipe with its documentation: source, command, expected result, and the values that are not published."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mambar.errors import RecipeError
from mambar.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """One recipe of `mambar recipe --list`.

    Attributes:
        recipe: The recipe.
        title: One line for the list.
        command: The command that runs it.
        source: Where the values come from.
        expected: The expected result and its origin; "not run" if it was never run here.
        not_published: Fields whose values neither paper nor code publish, with the reason for each.
    """

    recipe: Recipe
    title: str
    command: str
    source: str = "ours"
    expected: str = "not run"
    not_published: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.recipe.to_flat_dict()
        for name in self.not_published:
            if name not in known:
                raise RecipeError(f"recipe {self.recipe.name!r} has no field {name!r}; correct not_published.")
