import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambar.errors import RecipeError
from mambar.training.recipe import Recipe, Stage

ONE = Recipe(name="one", model="mambar_tiny_patch16_224")
THREE = dataclasses.replace(ONE, stages=(Stage(name="a"), Stage(name="b"), Stage(name="c")))


def test_plain_names_change_the_only_stage_and_dotted_names_any_stage():
    assert ONE.replace(epochs=2, seed=3).stages[0].epochs == 2
    assert ONE.replace(**{"stages.0.epochs": 2}) == ONE.replace(epochs=2)
    changed = THREE.replace(**{"stages.1.epochs": 2})
    assert [stage.epochs for stage in changed.stages] == [30, 2, 30]
    assert THREE.stages[1].epochs == 30


@pytest.mark.parametrize(
    "assignment, name, value",
    [
        ("epochs=2", "epochs", 2),
        ("lr=1e-3", "lr", 1e-3),
        ("lr=1", "lr", 1.0),
        ("img_size=224x160", "img_size", (224, 160)),
        ("img_size=64", "img_size", 64),
        ("clip_grad=none", "clip_grad", None),
        ("clip_grad=2", "clip_grad", 2.0),
        ("freeze_backbone=yes", "freeze_backbone", True),
        ("scale=0.3,0.9", "scale", (0.3, 0.9)),
        ("betas=(0.8, 0.9)", "betas", (0.8, 0.9)),
        ("schedule=linear", "schedule", "linear"),
        ("start_from=runs/old=1", "start_from", "runs/old=1"),
        ("auto_augment=rand-m9-mstd0.5-inc1", "auto_augment", "rand-m9-mstd0.5-inc1"),
    ],
)
def test_text_is_typed_by_the_field(assignment, name, value):
    found = getattr(ONE.with_overrides([assignment]).stages[0], name)
    assert found == value and type(found) is type(value)


def test_tables_take_any_name_with_a_dot():
    changed = ONE.with_overrides(
        ["config.embed_dim=64", "config.head=register_mean", "data_options.limit=10", "config.drop_path_rate=0.1"]
    )
    assert dict(changed.config) == {"embed_dim": 64, "head": "register_mean", "drop_path_rate": 0.1}
    assert dict(changed.data_options) == {"limit": 10}
    assert dict(ONE.config) == {}


@pytest.mark.parametrize(
    "text, value",
    [("64,32", (64, 32)), ("[64, 32]", (64, 32)), ("0.5,none", "0.5,none"), ("a,b", "a,b"), ("", ""), ("7", 7)],
)
def test_tables_take_lists_with_and_without_brackets(text, value):
    assert ONE.with_overrides([f"task_options.resize={text}"]).task_options["resize"] == value


@pytest.mark.parametrize(
    "recipe, assignment, match",
    [
        (ONE, "epocs=2", "'epocs' is not a field.*'epochs'"),
        (ONE, "batchsize=2", "'batch_size'"),
        (THREE, "stages.0.epocs=2", "'stages.0.epochs'"),
        (THREE, "epochs=2", r"stages\.0\.epochs"),
        (THREE, "stages.3.epochs=2", "stages 0 to 2"),
        (ONE, "epochs=two", "a whole number"),
        (ONE, "epochs=2.5", "a whole number"),
        (ONE, "epochs=-1", "0 or more"),
        (ONE, "lr=nan", "a number"),
        (ONE, "lr=0", "above 0"),
        (ONE, "precision=fp8", "'fp16'"),
        (ONE, "compile=maybe", "true or false"),
        (ONE, "epochs", "is not field=value"),
        (ONE, "=2", "is not field=value"),
        (ONE, "num_shards=3", "batch_size=128 cannot be divided"),
        (ONE, "final_weights=ema", "ema_decay"),
        (ONE, "scale=0.9,0.1", "rising order"),
        (ONE, "stages=2", "not a field"),
        (ONE, "seed=-1", "seed=-1"),
    ],
)
def test_a_wrong_field_is_one_line_with_the_nearest_name(recipe, assignment, match):
    with pytest.raises(RecipeError, match=match) as caught:
        recipe.with_overrides([assignment])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_pretrained_takes_the_architecture_from_the_weights():
    changed = ONE.with_overrides(["pretrained=model.pth", "config.drop_rate=0.1", "epochs=2"])
    assert (changed.model, changed.config) == ("same", {"drop_rate": 0.1})
    assert (changed.stages[0].start_from, changed.stages[0].epochs) == ("model.pth", 2)
    with pytest.raises(RecipeError, match="pretrained=true is not allowed; it takes a run directory"):
        ONE.with_overrides(["pretrained=true"])


def test_a_later_stage_can_be_the_first_with_start_from():
    changed = THREE.with_overrides(["stages.2.start_from=runs/x", "stage=2"])
    assert [stage.name for stage in changed.stages] == ["c"]
    assert THREE.with_overrides(["stage=0"]) == THREE
    with pytest.raises(RecipeError, match=r"stages\.2\.start_from=PATH"):
        THREE.with_overrides(["stage=2"])
    with pytest.raises(RecipeError, match="stages 0 to 2"):
        THREE.with_overrides(["stage=3"])


def test_json_round_trip():
    recipe = THREE.replace(**{"stages.0.img_size": (64, 32), "config.embed_dim": 64, "stages.2.clip_grad": 0.1 + 0.2})
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())["format_version"] == 3


@pytest.mark.parametrize(
    "change, match",
    [
        ({"format_version": 4}, "format_version 4.*Install a newer"),
        ({"format_version": None}, "format_version None"),
        ({"colour": 1}, "'colour' is not a field"),
        ({"stages": [{"epocs": 1}]}, "'epocs' is not a field.*'epochs'"),
        ({"stages": 3}, "a list of stages"),
        ({"stages": []}, "at least one stage"),
        ({"seed": "x"}, "a whole number"),
        ({"config": [1]}, "a table"),
    ],
)
def test_json_with_invalid_fields_is_refused(change, match):
    plain = {**json.loads(ONE.to_json()), **change}
    with pytest.raises(RecipeError, match=match):
        Recipe.from_json(json.dumps(plain))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 100_000])
def test_text_that_is_not_a_json_object_is_refused(text):
    with pytest.raises(RecipeError):
        Recipe.from_json(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_gives_a_recipe_or_a_recipe_error(name, value):
    try:
        ONE.with_overrides([f"{name}={value}"])
    except RecipeError as error:
        assert str(error)


def test_differences_name_every_changed_field():
    changed = THREE.replace(**{"stages.1.lr": 0.5, "seed": 4, "config.embed_dim": 8})
    assert THREE.differences(changed) == {
        "config.embed_dim": (None, 8),
        "stages.1.lr": (1e-4, 0.5),
        "seed": (0, 4),
    }
    assert THREE.differences(THREE) == {}


def test_the_peak_is_scaled_with_the_batch():
    assert Stage(lr=5e-4, lr_base_size=512, batch_size=1024).peak_lr == pytest.approx(1e-3)
    assert Stage(lr=1e-5, batch_size=512).peak_lr == 1e-5


@pytest.mark.parametrize(
    "assignment, name, value, new",
    [
        ("clip=1", "stages.0.clip_grad", 1.0, "clip_grad="),
        ("stages.0.image_size=64", "stages.0.img_size", 64, "stages.0.img_size="),
        ("lr_per=512", "stages.0.lr_base_size", 512, "lr_base_size="),
        ("shards=2", "num_shards", 2, "num_shards="),
        ("deliver=best", "final_weights", "best", "final_weights="),
        ("rollbacks=5", "max_rollbacks", 5, "max_rollbacks="),
        ("config.dim=32", "config.embed_dim", 32, "config.embed_dim="),
        ("config.drop_path=0.1", "config.drop_path_rate", 0.1, "config.drop_path_rate="),
        ("config.head=mean", "config.head", "register_mean", "register_mean"),
        ("config.head=none", "config.head", "avg_all", "avg_all"),
    ],
)
def test_an_old_name_on_the_command_line_is_taken_with_one_line_that_names_the_new(
    caplog, assignment, name, value, new
):
    assert ONE.with_overrides([assignment]).to_flat_dict()[name] == value
    (record,) = caplog.records
    assert assignment.partition("=")[0] in record.message and new in record.message and "0.3" in record.message


def test_old_keywords_in_python_warn():
    with pytest.warns(DeprecationWarning, match="clip= is now clip_grad="):
        assert Stage(clip=1.0).clip_grad == 1.0
    with pytest.warns(DeprecationWarning, match="shards= is now num_shards="):
        assert Recipe(name="x", model="y", shards=2).num_shards == 2
    with pytest.warns(DeprecationWarning, match="smoothing= is now label_smoothing=") as caught:
        assert ONE.replace(smoothing=0.1).stages[0].label_smoothing == 0.1
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"Recipe\.but is now Recipe\.replace"):
        assert ONE.but(epochs=2) == ONE.replace(epochs=2)


def test_an_old_and_a_new_name_of_one_field_are_refused_together():
    with pytest.raises(RecipeError, match="clip and clip_grad are the same field"):
        ONE.with_overrides(["clip=1", "clip_grad=2"])


@pytest.mark.parametrize("version", [1, 2])
def test_a_recipe_from_before_cuda_graphs_is_read(version):
    fields = {**json.loads(Recipe(name="old", model="mambar_tiny_patch16_224").to_json()), "format_version": version}
    del fields["cuda_graphs"]
    assert Recipe.from_fields(fields).cuda_graphs
    with pytest.raises(RecipeError, match="has no field 'cuda_graphs'"):
        Recipe.from_fields({**fields, "format_version": 3})
