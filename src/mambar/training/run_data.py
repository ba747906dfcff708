"""The data on which the model of a run is evaluated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambar.data.dataset import ImageDataset
from mambar.data.registry import open_dataset, open_evaluation_dataset
from mambar.errors import DataError, InputError
from mambar.training.checkpoint.recipe_file import RECIPE_NAME
from mambar.training.checkpoint.run_directory import read_located_recipe
from mambar.training.recipe import Recipe


def recipe_with_data(run: str | Path) -> Recipe:
    """The recipe of a run directory, or of a file in one, which names its data; `InputError` if there is none."""
    path = Path(run).expanduser()
    directory = path.parent if path.is_file() else path
    if not (directory / RECIPE_NAME).is_file():
        raise InputError(f"{run} is no run with a {RECIPE_NAME} that names its data; give the data (--data).")
    return read_located_recipe(directory)


def open_run_dataset(
    run: Any,
    data: Any,
    split: str | None,
    data_options: Mapping[str, Any] | None,
    *,
    classes: Sequence[str] | None,
    kind: str = "classification",
) -> ImageDataset:
    """`data`, by default those of `run` with its options; `DataError` if they do not have the model's classes.

    run: a run directory or a file in one; not used if `data` are given. split: by default "val", or all images
    of a folder given as `data` that has no validation split.
    """
    options = data_options or {}
    if data is None:
        recipe = recipe_with_data(run or ".")
        options = {**recipe.data_options, **options}
        data, dataset = recipe.data, open_dataset(recipe.data, split or "val", kind=kind, **options)
    else:
        dataset = open_evaluation_dataset(data, split, kind=kind, **options)
    if classes is not None and tuple(classes) != tuple(dataset.classes):
        raise DataError(
            f"data={data} has {len(dataset.classes)} classes ({', '.join(dataset.classes[:4])}, …), the model "
            f"{len(classes)} ({', '.join(classes[:4])}, …); evaluate on data with the model's classes."
        )
    return dataset
