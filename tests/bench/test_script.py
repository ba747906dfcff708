"""Numbers of a benchmark are kept as JSON, from which the page and the plot are written again without measuring."""

import argparse
import json

import pytest

from mambar.bench import script


def test_an_earlier_measurement_gives_the_same_files(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "describe", lambda device: f"a machine with {device}")

    def run(measure, *words):
        parser = argparse.ArgumentParser()
        parser.add_argument("--batch", type=int, default=3)
        monkeypatch.setattr("sys.argv", ["benchmark", *map(str, words)])
        return script.run_benchmark(
            parser,
            measure,
            lambda each: str(each["found"]),
            lambda each, path: path.write_text(each["machine"], "utf-8"),
        )

    numbers = tmp_path / "numbers.json"
    first = run(lambda chosen: [{"batch": chosen.batch}], "--batch", 4, "--out", numbers)
    assert json.loads(numbers.read_text("utf-8")) == {"machine": "a machine with cuda", "found": [{"batch": 4}]}
    page, plot = tmp_path / "page.md", tmp_path / "plot.txt"
    again = run(lambda _: pytest.fail("measured again"), "--from", numbers, "--page", page, "--plot", plot)
    assert again == first == page.read_text("utf-8") == "[{'batch': 4}]"
    assert plot.read_text("utf-8") == "a machine with cuda"
