"""recipe.json of a run directory: the recipe with its checksum, and the recorded changes of a resumed run.

    {"format_version": 3, FIELDS…, "paths": {FIELD: PATH…}, "changes": [CHANGE…], "recipe_sha256": …, "sha256": …}

`recipe_sha256` is that of the fields alone and is stored in every checkpoint; `sha256` protects the whole document.
Files of format 1 (version 0.1.0) have neither and are read as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mambar import atomic_files
from mambar.errors import InputError
from mambar.training.checkpoint.checksummed_json import body_sha256
from mambar.training.recipe import Recipe, load_json_object
from mambar.training.stage import PREVIOUS_STAGE

RECIPE_NAME: Final = "recipe.json"
_OWN: Final = ("paths", "changes", "recipe_sha256", "sha256")


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """The recipe of a run and the changes that its resumes made.

    Attributes:
        recipe: The recipe as the run goes on with it.
        sha256: Digest of the recipe's fields.
        changes: One mapping a change: `previous` (digest before), `option` (what allowed it), `fields` (name → [before,
            after]).
        paths: Absolute paths of the fields that name existing files or folders, for a resume in another directory.
        edited: True if the file was edited by hand and accepted, so that it must be written again.
    """

    recipe: Recipe
    sha256: str
    changes: tuple[Mapping[str, Any], ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)
    edited: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> "RecipeFile":
        """The file of a new run."""
        return cls(recipe=recipe, sha256=recipe_sha256(recipe), paths=_absolute_paths(recipe))

    @property
    def accepted_sha256(self) -> tuple[str, ...]:
        """The digests that a checkpoint of this run may carry, the present one first."""
        return (self.sha256, *(str(change["previous"]) for change in self.changes))

    def located(self) -> Recipe:
        """The recipe with absolute paths for fields whose path does not exist in the current directory."""
        given = self.recipe.to_flat_dict()
        moved = {
            name: path
            for name, path in self.paths.items()
            if _may_be_path(name, given[name]) and not Path(given[name]).expanduser().exists()
        }
        return self.recipe.replace(**moved) if moved else self.recipe

    def changed(self, recipe: Recipe, *, option: str) -> "RecipeFile":
        """The file with another recipe; the change is recorded."""
        fields = {name: list(pair) for name, pair in self.recipe.differences(recipe).items()}
        change = json.loads(json.dumps({"previous": self.sha256, "option": option, "fields": fields}))
        changes, paths = (*self.changes, change), _absolute_paths(recipe) | {**self.paths}
        return RecipeFile(recipe=recipe, sha256=recipe_sha256(recipe), changes=changes, paths=paths)

    def write(self, directory: Path) -> None:
        """Replaces recipe.json in `directory`."""
        fields = json.loads(self.recipe.to_json())
        body = {**fields, "paths": dict(self.paths), "changes": list(self.changes), "recipe_sha256": self.sha256}
        data = _text({**body, "sha256": body_sha256(body)})
        atomic_files.write_atomically(directory / RECIPE_NAME, data)


def _absolute_paths(recipe: Recipe) -> dict[str, str]:
    starts = {f"stages.{index}.start_from": stage.start_from for index, stage in enumerate(recipe.stages)}
    fields = {"data": recipe.data, **starts}
    found = {name: Path(value).expanduser() for name, value in fields.items() if _may_be_path(name, value)}
    return {name: str(path.absolute()) for name, path in found.items() if path.exists()}


def _may_be_path(name: str, value: str) -> bool:
    """False for a keyword of start_from and for the name of a dataset, also where a folder is called so."""
    if name != "data":
        return value not in PREVIOUS_STAGE
    # Imports torch, which `mambar --help` does not need.
    from mambar.data.registry import DATASETS

    return not any(value in of_kind for of_kind in DATASETS.values())


def recipe_sha256(recipe: Recipe) -> str:
    """Digest of all fields of a recipe."""
    return body_sha256(json.loads(recipe.to_json()))


def read_recipe_file(directory: Path, *, accept_edited: bool = False) -> RecipeFile:
    """recipe.json of `directory`; InputError if there is none or if it was changed by hand.

    accept_edited: take a file whose checksum does not match; the change is recorded.
    """
    file = directory / RECIPE_NAME
    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{directory} holds no {RECIPE_NAME}, so there is no run to resume; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {str(error)[:80]}.") from None
    document = load_json_object(text, source=str(file))
    body = {name: value for name, value in document.items() if name != "sha256"}
    fields = {name: value for name, value in document.items() if name not in _OWN}
    intact = data == _text({**body, "sha256": body_sha256(body)}) and body.get("recipe_sha256") == body_sha256(fields)
    old = document.get("format_version") == 1 and not any(name in document for name in _OWN)
    if not (intact or old or accept_edited):
        # A file of a newer version is named as such.
        Recipe.from_fields(fields, source=str(file))
        raise InputError(
            f"{file} was edited or is damaged: its checksum does not match. Restore it, or resume with "
            "--accept-edited-recipe."
        )
    recipe = Recipe.from_fields(fields, source=str(file))
    changes = tuple(document.get("changes", ()))
    if intact or old:
        sha256 = recipe_sha256(recipe) if old else str(document["recipe_sha256"])
        return RecipeFile(recipe=recipe, sha256=sha256, changes=changes, paths=document.get("paths", {}))
    change = {"previous": document.get("recipe_sha256"), "option": "--accept-edited-recipe", "fields": {}}
    return RecipeFile(recipe=recipe, sha256=recipe_sha256(recipe), changes=(*changes, change), edited=True)


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
