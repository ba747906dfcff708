"""Secondary outcomes of models whose norms and predictions are known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mambar import save_model
from mambar.errors import InputError
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.paper import secondary_outcomes, table_secondary
from mambar.paper.context import Context
from mambar.paper.secondary_outcomes import measure_secondary
from mambar.paper.sweep import Cell
from mambar.recipes.digits import RECIPE


def test_ratios_are_those_of_all_tokens_and_of_outliers():
    norms = {
        "residual": torch.tensor([[1.0, 2.0, 100.0], [1.0, 1.0, 1.0]]),
        "mixer": torch.tensor([[0.5, 1.0, 99.0]] * 2),
    }
    found = secondary_outcomes._by_layer(norms, [10.0, 10.0])
    assert found["mixer_ratio"] == [0.5, 1.0] and found["mixer_median"] == [1.0, 1.0]
    assert math.isclose(found["mixer_ratio_outliers"][0], 0.99, rel_tol=1e-6)
    assert math.isnan(found["mixer_ratio_outliers"][1])
    assert found["norm_max"] == [100.0, 1.0] and found["outlier_share"] == [1 / 3, 0.0]


def saved(tmp_path, classes, name="model"):
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=8, patch_size=2, embed_dim=8, depth=2, num_registers=1, num_classes=10)
    model = VisionMamba(config.replace(placement="middle", head="token", register_reduction=1)).eval()
    model.classes = classes
    save_model(tmp_path / name, model)
    return tmp_path / name


def measured(tmp_path, classes, data="digits"):
    recipe = RECIPE.replace(data=data)
    return measure_secondary(
        saved(tmp_path, classes), Cell(row="Vim", recipe=recipe), 0, Context(name="t", out=tmp_path)
    )


def test_every_intervention_has_its_columns(tmp_path, caplog):
    digits = tuple(map(str, range(10)))
    found = measured(tmp_path, digits)
    columns = found["columns"]
    assert found["num_images"] == 64 and 0 <= columns["top-1 as trained, %"] <= 100
    for name in ("outliers clamped", "as many random tokens as highest-norm 5 % exchanged", "4 added (zero)"):
        assert f"top-1 change, {name}, points" in columns
        assert f"outliers, last layer, {name}, % of tokens" in columns
    assert found["not_run"]["background patches"] == "the images have no boxes or masks"
    assert "Vim: background patches not run: the images have no boxes or masks." in caplog.text


def test_without_common_classes_only_norms_are_measured(tmp_path):
    columns = measured(tmp_path, tuple("abcdefghij"))["columns"]
    assert math.isnan(columns["top-1 as trained, %"])
    assert columns["largest norm, last layer, as trained"] > 0


def test_masks_give_the_accuracy_of_the_background(tmp_path):
    recipe = RECIPE.replace(data="digits", data_options={"canvas": 16, "limit": 200})
    directory = saved(tmp_path, None)
    columns = measure_secondary(directory, Cell(row="Vim", recipe=recipe), 0, Context(name="t", out=tmp_path))[
        "columns"
    ]
    inside = columns["linear accuracy of patches inside boxes, %"]
    assert 0 < columns["linear accuracy of patches outside boxes, %"] < 100
    expected = 100 * columns["linear accuracy of patches outside boxes, %"] / inside
    assert math.isclose(columns["outside / inside, %"], expected)


def test_two_given_models_are_compared_and_a_wrong_one_is_named_first(tmp_path, monkeypatch):
    digits = tuple(map(str, range(10)))
    runs = tuple(saved(tmp_path, digits, name) for name in ("vim", "ours"))
    context = Context(name="table_secondary", out=tmp_path / "out", runs=runs)
    results = table_secondary.measure(context)
    assert {result.row for result in results} == {"Vim", "Mamba-R"} and not table_secondary.cells(context)
    written = tmp_path / "out" / "smoke" / "table_secondary"
    assert "| top-1 as trained, % | Mamba-R |" in (written / "differences.md").read_text("utf-8")
    layers = json.loads((written / "layers.json").read_text("utf-8"))["rows"]
    assert len(layers["Vim"][0]["mixer_ratio"]) == 2 and (written / "layers.png").is_file()
    # Equal networks have equal outcomes.
    by_row = {(result.row, result.column): result.values for result in results}
    assert all(values == by_row["Vim", column] for (row, column), values in by_row.items())
    monkeypatch.setattr(table_secondary, "measure_secondary", None)
    with pytest.raises(InputError, match="no such run directory"):
        table_secondary.measure(replace(context, runs=(runs[0], tmp_path / "nowhere")))
