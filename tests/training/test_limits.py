"""Numbers of hundreds of digits, NaN and huge sizes: one line, exit 2, and nothing is written."""

import re

import pytest

from mambar.errors import InputError
from mambar.models import VisionMambaConfig
from mambar.training import train
from mambar.training.memory_check import available_memory, check_memory
from mambar.training.recipe import Recipe, Stage
from training import runs

ONE = Recipe(name="one", model="mambar_tiny_patch16_224", data_options={"limit": 48})
NUMBERS = [name for name, kind in Stage.__annotations__.items() if kind in (int, float, int | None, float | None)]
COUNTS = [name for name, kind in Recipe.__annotations__.items() if kind in (int, int | None)]
HUGE = ["9" * 400, "9" * 5000, "-" + "9" * 400, "1e400", "nan", "inf", "-1", "1" + "0" * 30]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) <= 200, text
    assert error.value.exit_code == 2


@pytest.mark.parametrize("value", HUGE, ids=lambda value: f"{value[:5]}-{len(value)}")
@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
def test_every_number_of_a_recipe_is_finite_and_bounded(name, value):
    with pytest.raises(InputError, match=name) as error:
        ONE.with_overrides([f"{name}={value}"])
    one_line(error)


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "-" + "9" * 400, "NaN", "Infinity", "[1, NaN]"])
@pytest.mark.parametrize("table", ["config", "data_options", "task_options"])
def test_every_number_of_a_table_is_finite_and_bounded(table, value):
    with pytest.raises(InputError, match=re.escape(f"{table}.x")) as error:
        ONE.with_overrides([f"{table}.x={value}"])
    one_line(error)


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    "value",
    [10**400, 10**5000, float("nan"), float("inf"), -1, 1e8, 10**8, True, "8", None, [1]],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["depth", "embed_dim", "patch_size", "num_registers", "d_state", "expand"])
def test_every_count_of_a_model_is_bounded(name, value):
    with pytest.raises(InputError, match=name) as error:
        VisionMambaConfig(**{name: value})
    one_line(error)


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    "fields",
    [
        {"img_size": 1e8},
        {"img_size": "x"},
        {"img_size": (8,)},
        {"norm_eps": float("inf")},
        {"norm_eps": float("nan")},
        {"norm_eps": "x"},
        {"drop_path_rate": float("nan")},
        {"drop_path_rate": "x"},
        {"proj_bias": 1},
        {"head": "x" * 500},
        {"x" * 500: 1},
    ],
)
def test_every_other_value_of_a_model_is_checked(fields):
    with pytest.raises(InputError) as error:
        VisionMambaConfig().replace(**fields)
    assert len(str(error.value)) <= 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("config", [{"depth": 10**8}, {"embed_dim": 10**8}, {"depth": 10_000, "embed_dim": 1 << 20}])
def test_a_run_of_a_huge_model_leaves_no_directory(tmp_path, config):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"depth|embed_dim") as error:
        train(runs.tiny(**{f"config.{name}": value for name, value in config.items()}), out=out, device="cpu")
    one_line(error)
    assert not out.exists()


def test_a_model_that_does_not_fit_is_refused_with_its_size():
    config = VisionMambaConfig(embed_dim=1024, depth=48)
    with pytest.raises(InputError, match=r"has 3\d\d,\d\d\d,\d\d\d parameters and needs 5\.\d GiB.*1\.0 GiB are avail"):
        check_memory(config, available=2**30)
    check_memory(config, available=2**33)
    assert available_memory() > 2**20


@pytest.mark.parametrize("num_workers", [-1, 10**9, 10**5000], ids=["negative", "many", "huge"])
def test_the_number_of_workers_is_bounded(tmp_path, num_workers):
    with pytest.raises(InputError, match="num_workers=") as error:
        train(runs.tiny(), out=tmp_path / "run", num_workers=num_workers)
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_workers_is_the_old_name_of_num_workers(tmp_path):
    with pytest.warns(DeprecationWarning, match="workers= is now num_workers="), pytest.raises(InputError):
        train(runs.tiny(), out=tmp_path / "run", workers=-1)
