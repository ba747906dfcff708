import sys
import types

import pytest

from mambar.errors import InputError
from mambar.training.metrics_log import MetricsLog
from mambar.training.trackers import TRACKERS, make_trackers
from training import runs


class RecordingTracker:
    def __init__(self):
        self.logged, self.closed = [], False

    def log(self, step, numbers):
        self.logged.append((step, dict(numbers)))

    def close(self):
        self.closed = True


def test_a_tracker_receives_the_numbers_of_the_log(tmp_path):
    tracker = RecordingTracker()
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=[tracker])
    log.open(step=0, evaluated=0)
    log.append("training", {"step": 3, "loss": 0.5, "grad_norm": float("inf"), "layers": [1.0]})
    log.close()
    assert tracker.logged == [(3, {"training/step": 3.0, "training/loss": 0.5})]
    assert tracker.closed


@pytest.mark.parametrize(
    "name, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"trackers={name} needs"):
        make_trackers(runs.tiny(trackers=(name,)), tmp_path)


def test_every_choice_of_the_recipe_has_a_tracker():
    for name in TRACKERS:
        assert runs.tiny(trackers=(name,)).trackers == (name,)


def test_tensorboard_files_hold_the_numbers(tmp_path, need_package):
    need_package("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = make_trackers(runs.tiny(trackers=("tensorboard",)), tmp_path)
    for step in (1, 2):
        tracker.log(step, {"training/loss": step / 4})
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Tags()["scalars"] == ["training/loss"]
    assert [(row.step, row.value) for row in found.Scalars("training/loss")] == [(1, 0.25), (2, 0.5)]


class Service(types.ModuleType):
    """Replaces wandb and mlflow: records every call."""

    def __init__(self):
        super().__init__("service")
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_services_get_the_recipe_and_the_numbers_and_nothing_else(tmp_path, monkeypatch, name):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    recipe = runs.tiny(trackers=(name,))
    (tracker,) = make_trackers(recipe, tmp_path / "run-7")
    tracker.log(3, {"training/loss": 0.5})
    tracker.close()
    recorded = repr(service.calls)
    assert "run-7" in recorded and "stages.0.batch_size" in recorded and "secret-of-mine" not in recorded
    numbers = {"wandb": ("log", ({"training/loss": 0.5},), {"step": 3})}
    numbers["mlflow"] = ("log_metrics", ({"training/loss": 0.5},), {"step": 3})
    assert service.calls[-2] == numbers[name] and len(service.calls) == {"wandb": 3, "mlflow": 4}[name]
