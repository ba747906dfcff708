"""What a grid costs is said first; what does not fit is refused, or cut to what does."""

import time
from dataclasses import replace

import pytest

from mambar.errors import InputError
from mambar.paper import table_register_count, time_budget
from mambar.paper.context import Context
from mambar.paper.sweep import planned_runs


@pytest.fixture
def context(tmp_path):
    return Context(name="table", budget="small", out=tmp_path, data="digits", seeds=(0, 1), fields=("epochs=10",))


def rated(monkeypatch, rate):
    monkeypatch.setattr(time_budget, "measured_rate", lambda work, context: rate)


def test_cost_is_counted_over_all_runs(context, caplog):
    caplog.set_level("INFO", "mambar.paper")
    same = time_budget.with_deadline(table_register_count.cells, context)
    assert same is context
    # 4 counts and the control × 2 seeds × 10 epochs × 1,438 images.
    assert "10 runs of 10 epochs: 0.14 million images" in caplog.text


def test_what_does_not_fit_is_refused_or_cut(context, monkeypatch):
    # A rate at which 8.5 epochs of all ten runs take a minute.
    rated(monkeypatch, 10 * 1438 * 8.5 / 60 / 0.85)
    with pytest.raises(InputError, match=r"need about 1\.2 minutes, --minutes is 1; epochs=8 fit"):
        time_budget.with_deadline(table_register_count.cells, replace(context, minutes=1.0, fit=False))
    cut = time_budget.with_deadline(table_register_count.cells, replace(context, minutes=1.0, fit=True))
    assert cut.fields == ("epochs=10", "epochs=8")
    assert cut.deadline is not None and 50 < cut.deadline - time.monotonic() <= 60
    assert table_register_count.cells(cut)[0].recipe.stages[0].epochs == 8
    whole = time_budget.with_deadline(table_register_count.cells, replace(context, minutes=2.0, fit=False))
    assert whole.fields == context.fields and whole.deadline is not None


def test_not_even_one_epoch_and_fit_without_minutes_are_refused(context, monkeypatch):
    rated(monkeypatch, 1.0)
    with pytest.raises(InputError, match="take fewer runs"):
        time_budget.with_deadline(table_register_count.cells, replace(context, minutes=1.0, fit=True))
    with pytest.raises(InputError, match="needs --minutes"):
        time_budget.with_deadline(table_register_count.cells, replace(context, minutes=None, fit=True))


def test_of_runs_side_by_side_the_slowest_is_waited_for(context, monkeypatch):
    class Ended:
        def poll(self):
            return None

        def kill(self):
            pass

    # Steps told of, look by look: one run makes 10 while it is watched, the other 30.
    made = {"0": iter([2, 4, 14]), "1": iter([2, 4, 34])}
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time_budget, "start", lambda item, slot, context: Ended())
    monkeypatch.setattr(time_budget, "stop", lambda processes: None)
    monkeypatch.setattr(time_budget, "_steps", lambda item: next(made[item.directory.name]))
    monkeypatch.setattr(time_budget.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(time_budget.time, "monotonic", lambda: float(next(clock)))
    work = list(planned_runs(table_register_count.cells(context), context).values())[:2]
    batch = work[0].recipe.stages[0].batch_size
    both = time_budget.measured_rate(work, replace(context, jobs=2))
    assert both == 2 * 10 * batch / 10
