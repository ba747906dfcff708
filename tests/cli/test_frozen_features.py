"""Frozen features of a trained run, by name and with two processes."""

import json
import os
import subprocess
import sys

import pytest

from mambar.errors import InputError
from mambar.recipes import feature_extraction
from mambar.recipes.evaluate_run import evaluate_run
from mambar.recipes.frozen_features import evaluate_frozen_features
from training import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("frozen") / "run"
    runs.here(runs.tiny(data_options={"limit": 200}, epochs=1), out)
    return out


def test_a_run_is_evaluated_beside_its_classifier(run, tmp_path, monkeypatch):
    passes = []
    batches = feature_extraction.evaluation_batches
    monkeypatch.setattr(
        feature_extraction, "evaluation_batches", lambda *given, **named: passes.append(1) or batches(*given, **named)
    )
    found = evaluate_frozen_features(
        run, protocols=("knn", "logistic"), features=("registers", "avg"), features_dir=tmp_path / "kept"
    )
    assert len(passes) == 2, "train and val are read once each"
    assert found.top1 == evaluate_run(run).top1 and found.data == "digits" and found.num_train == 200
    rows = {(score.features, score.protocol, score.setting): score for score in found.scores}
    assert {("registers", "knn", 10), ("avg", "knn", 100)} < rows.keys()
    assert all(0.2 < score.top1 <= score.top5 <= 1 for score in found.scores)
    assert sorted(path.name for path in (tmp_path / "kept" / "train").iterdir()) == [
        "avg",
        "labels",
        "registers",
    ]
    with pytest.raises(InputError, match="exists; give a new directory"):
        evaluate_frozen_features(run, features_dir=tmp_path / "kept")
    with pytest.raises(InputError, match="did you mean 'logistic'"):
        evaluate_frozen_features(run, protocols=("logistics",))


def test_a_named_model_has_no_classifier_of_its_own(tmp_path):
    found = evaluate_frozen_features(
        "timm/vit_tiny_patch16_224", data="digits", data_options={"limit": 40}, img_size=32, protocols=("knn",)
    )
    assert found.top1 is None and {score.features for score in found.scores} == {"register_mean_avg"}


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_leave_no_features(run, tmp_path):
    arguments = ("evaluate", str(run), "--protocol", "knn", "--json", "--device", "cpu", "--processes", "2")
    command, environment = [sys.executable, "-m", "mambar", *arguments], {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("mambar-features-*"))
    expected = evaluate_frozen_features(run)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.to_dict())) and expected.top1 > 0


def test_the_command_prints_a_table_and_refuses_options_without_effect(run, mambar_command):
    code, out, _ = mambar_command("evaluate", run, "--protocol", "knn", "--features", "registers", "--device", "cpu")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["features", "protocol", "setting", "top-1", "top-5"]
    assert lines[1].split()[:3] == ["registers", "knn", "k=10"] and "own classifier" in lines[-2]
    for given, message in (
        (("--features", "registers"), "--features needs --protocol"),
        (("--processes", "2"), "--processes needs --protocol"),
        (("--protocol", "knn", "--flip"), "--flip has no effect with --protocol"),
        (("--protocol", "knn", "--features", "register"), "did you mean 'registers'"),
        (("--protocol", "knn,segmentation_knn"), "protocols for images and for masks"),
    ):
        code, _, error = mambar_command("evaluate", run, *given)
        assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("given", [(), ("--protocol", "knn")])
def test_a_model_without_a_run_needs_data(run, mambar_command, tmp_path, given):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    code, _, error = mambar_command("evaluate", tmp_path, *given, "--device", "cpu")
    assert code == 2 and "no run with a recipe.json that names its data; give the data (--data)" in error
    # A file in a run directory has the data of that run.
    code, out, error = mambar_command("evaluate", run / "model.safetensors", *given, "--device", "cpu")
    assert code == 0 and "top-1" in out, error
