import sys

import pytest

from mambar.errors import InputError
from mambar.training.log import MetricsLog
from mambar.training.track import TRACKERS, trackers
from training import runs


class Listening:
    def __init__(self):
        self.heard, self.closed = [], False

    def log(self, step, numbers):
        self.heard.append((step, dict(numbers)))

    def close(self):
        self.closed = True


def test_a_tracker_hears_the_numbers_of_the_log(tmp_path):
    tracker = Listening()
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=[tracker])
    log.begin(step=0, evaluated=0)
    log.append("training", {"step": 3, "loss": 0.5, "grad_norm": float("inf"), "layers": [1.0]})
    log.close()
    assert tracker.heard == [(3, {"training/step": 3.0, "training/loss": 0.5})]
    assert tracker.closed


@pytest.mark.parametrize(
    "name, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_one_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"track={name} needs"):
        trackers(runs.tiny(track=(name,)), tmp_path)


def test_every_choice_of_the_recipe_has_a_tracker():
    for name in TRACKERS:
        assert runs.tiny(track=(name,)).track == (name,)
