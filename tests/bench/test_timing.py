"""Timing and tables: what is measured, and that missing cells are marked."""

import time

from mambar.bench.table import NOT_RUN, Row, markdown
from mambar.bench.timing import interleaved, summarize


def test_median_and_quartiles():
    timing = summarize([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.low, timing.median, timing.high, timing.rounds) == (2.0, 3.0, 4.0, 5)
    assert summarize([2.0]).median == 2.0


def test_work_is_interleaved_and_cpu_time_is_counted():
    order = []

    def burn():
        order.append("burn")
        sum(range(20_000))

    def rest():
        order.append("rest")
        time.sleep(0.002)

    found = interleaved({"burn": burn, "rest": rest}, rounds=3, min_seconds=1e-6)
    assert found["burn"].median > found["rest"].median  # sleeping costs no CPU time
    assert order[-2:] == ["burn", "rest"] and order[-4:-2] == ["burn", "rest"]


def test_missing_cells_are_marked_not_run():
    table = markdown(("a", "b"), [Row(name="x|y", cells=(1234.5,)), Row(name="z", cells=(0.12345, "text"))])
    assert table.splitlines()[2] == f"| x\\|y | 1,234 | {NOT_RUN} |"
    assert table.splitlines()[3] == "| z | 0.1235 | text |"
