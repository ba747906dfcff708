"""The recipes that stand for the paper's at each budget."""

import pytest

from mambar.errors import InputError, RecipeError
from mambar.models.config import variant
from mambar.paper.context import Context
from mambar.paper.networks import base_recipe, model_config, reduction, with_model
from mambar.paper.pair import pair_cells


def context(tmp_path, **fields):
    return Context(name="table", out=tmp_path, **fields)


def test_budgets_need_their_data(tmp_path):
    assert base_recipe(context(tmp_path, budget="smoke")).data == "digits"
    with pytest.raises(InputError, match="budget small needs data=PATH of CIFAR-10"):
        base_recipe(context(tmp_path, budget="small"))
    with pytest.raises(InputError, match="budget full needs data=PATH of ImageNet"):
        base_recipe(context(tmp_path, budget="full"))
    assert base_recipe(context(tmp_path, budget="full", data="/data")).stages[0].img_size == 128


def test_small_has_as_many_tokens_as_the_paper_and_more(tmp_path):
    recipe = base_recipe(context(tmp_path, budget="small", data="/data"))
    config = variant(recipe.model).replace(**recipe.config, img_size=recipe.stages[0].img_size)
    rows, cols = config.grid
    assert rows * cols == 256


def test_fields_change_every_budget(tmp_path):
    fields = ("epochs=3", "data_options.canvas=64", "config.patch_size=4")
    recipe = base_recipe(context(tmp_path, budget="small", data="/data", fields=fields))
    assert recipe.stages[0].epochs == 3
    assert recipe.data_options == {"canvas": 64} and recipe.config["patch_size"] == 4
    # Fields of the table's own rows stand above.
    assert with_model(recipe, {"num_registers": 4}).config["patch_size"] == 4
    with pytest.raises(RecipeError, match="did you mean 'epochs'"):
        base_recipe(context(tmp_path, budget="smoke", fields=("epoch=3",)))


@pytest.mark.parametrize(
    ("dim", "registers", "width", "divisor"), [(768, 12, 2304, 4), (128, 12, 384, 4), (128, 24, 384, 8), (16, 4, 16, 4)]
)
def test_reduction_keeps_the_width_of_the_head(dim, registers, width, divisor):
    assert reduction(dim, registers, width) == divisor
    assert registers * (dim // divisor) == width


def test_width_of_a_recipe(tmp_path):
    assert model_config(base_recipe(context(tmp_path, budget="smoke"))).embed_dim == 16
    assert model_config(base_recipe(context(tmp_path, budget="full", data="/data"))).embed_dim == 768


def test_a_recipe_replaces_that_of_the_small_budget(tmp_path):
    chosen = context(tmp_path, budget="small", recipe="tiny_imagenet", data="/data", fields=("epochs=2",))
    recipe = base_recipe(chosen)
    assert (recipe.data, recipe.stages[0].epochs, recipe.model) == ("/data", 2, "mambar_tiny_patch16_224")
    vim, ours = (model_config(cell.recipe) for cell in pair_cells(chosen))
    assert ours == variant("mambar_tiny_patch16_224").replace(patch_size=4)
    assert vim == variant("vim_tiny_patch16_224").replace(patch_size=4)
    with pytest.raises(InputError, match="recipe tiny_imagenet has no effect at the budget smoke"):
        context(tmp_path, recipe="tiny_imagenet")
