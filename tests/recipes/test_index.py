import dataclasses

import pytest

from mambar.errors import RecipeError
from mambar.models.config import VARIANTS
from mambar.recipes.entry import RecipeEntry
from mambar.recipes.index import ENTRIES, get_entry, get_recipe, recipe_names
from mambar.training.recipe import Recipe

# REFERENCE: the published stages of Base (official README and code), repeated here.
PUBLISHED = {
    "img_size": (128, 224, 224),
    "epochs": (300, 100, 20),
    "batch_size": (1024, 1024, 512),
    "peak_lr": (1e-3, 4e-4, 1e-5),
    "min_lr": (1e-5, 1e-5, 1e-5),
    "warmup_epochs": (5, 5, 5),
    "warmup_lr": (1e-6, 1e-6, 1e-6),
    "weight_decay": (0.05, 0.05, 0.1),
    "drop_path_rate": (0.1, 0.4, 0.4),
    "auto_augment": ("three", "three", "rand-m9-mstd0.5-inc1"),
    "color_jitter": (0.3, 0.3, 0.0),
    "scale": ((0.08, 1.0),) * 3,
    "aug_repeats": (3, 3, 1),
    "mixup": (0.8,) * 3,
    "cutmix": (1.0,) * 3,
    "mixup_prob": (1.0,) * 3,
    "mixup_switch_prob": (0.5,) * 3,
    "label_smoothing": (0.0, 0.0, 0.1),
    "random_erase_prob": (0.0,) * 3,
    "crop_pct": (0.875, 0.875, 1.0),
    "betas": ((0.9, 0.999),) * 3,
    "eps": (1e-8,) * 3,
    "clip_grad": (None,) * 3,
    "ema_decay": (0.99996,) * 3,
    "decay_groups": ("official",) * 3,
    "start_from": ("weights",) * 3,
    "layer_decay": (1.0,) * 3,
}


@pytest.mark.parametrize("field", PUBLISHED)
def test_base_has_the_published_stages(field):
    stages = get_recipe("mambar_base").stages
    assert tuple(getattr(stage, field) for stage in stages) == PUBLISHED[field]


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_has_its_recipes_name_and_all_documentation(name):
    found = get_entry(name)
    assert found.recipe.name == name == get_recipe(name).name
    assert found.title and found.source and f"mambar train {name}" in found.command
    assert found.expected
    assert Recipe.from_json(found.recipe.to_json()) == found.recipe


@pytest.mark.parametrize("name", ENTRIES)
def test_the_model_of_a_recipe_exists_and_accepts_its_fields(name):
    found = get_recipe(name)
    if found.model == "same":
        return
    for stage in found.stages:
        VARIANTS[found.model].replace(img_size=stage.img_size, drop_path_rate=stage.drop_path_rate, **found.config)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith(("mambar_", "vim_"))])
def test_what_differs_from_the_published_stages_is_explained(name):
    """Every value of a Mamba-R recipe that differs from Base's has a reason in `not_published`."""
    if name.startswith("vim_") or name == "mambar_base":
        return
    found, base = get_entry(name), get_recipe("mambar_base")
    for index, stage in enumerate(found.recipe.stages):
        for field in dataclasses.fields(stage):
            if field.name == "name" or getattr(stage, field.name) == getattr(base.stages[index], field.name):
                continue
            assert f"stages.{index}.{field.name}" in found.not_published, field.name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        get_recipe("digit")
    assert recipe_names() == list(ENTRIES)


def test_an_entry_cannot_explain_a_field_that_its_recipe_does_not_have():
    found = get_entry("mambar_tiny")
    with pytest.raises(RecipeError, match=r"stages\.0\.colour"):
        RecipeEntry(
            recipe=found.recipe,
            title="x",
            source="x",
            command="x",
            expected="x",
            not_published={"stages.0.colour": "x"},
        )


def test_digits_vim_differs_in_its_registers_only():
    one, other = get_recipe("digits"), get_recipe("digits_vim")
    changed = set(one.differences(other))
    assert changed == {"name", "model", "config.num_registers", "config.register_reduction"}
    vim = VARIANTS[other.model].replace(**other.config)
    assert (vim.num_registers, vim.placement, vim.head) == (1, "middle", "token")
