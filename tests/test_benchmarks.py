"""Benchmarks that need neither a GPU nor data run, on the smallest sizes that they offer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = [
    ["data/loading.py", "--seconds", "0.02"],
    ["models/norm_collection.py", "--batch", "1", "--batches", "1", "--rounds", "1"],
    ["ops/scan_cpu_llvm.py", "--rounds", "1"],
    ["segmentation/throughput.py", "--device", "cpu", "--smoke", "--rounds", "1"],
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_benchmark_prints_its_table(command):
    script, *options = command
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=240,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s") or done.stdout.count("| forward, fused |") == 2
