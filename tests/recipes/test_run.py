"""A whole recipe from the command line: the three published stages, shortened, on a folder and on tar shards."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mambar.data import Shapes
from mambar.data.transforms import to_pillow
from mambar.training.log import read_metrics

IDS = ("n01440764", "n01443537", "n01484850")
SHORT = [
    *("config.dim=32", "config.depth=2", "config.patch_size=8", "config.state=4"),
    *("config.num_registers=3", "config.reduce=2", "shards=2", "log_every=1", "precision=fp32", "workers=1"),
    *("stages.0.image_size=32", "stages.1.image_size=48", "stages.2.image_size=48"),
    *(f"stages.{stage}.{field}" for stage in range(3) for field in ("epochs=1", "warmup_epochs=0.5", "batch_size=24")),
]
# What a clock and the machine decide.
OWN = ("images_per_second", "memory_gib")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """72 training and 23 validation images of the shapes, laid out as ImageNet is, and the same as tar shards."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 72), ("val", 23)):
        shapes = Shapes(split=split, image_size=56, num_images=count, num_classes=3)
        for index in range(count):
            sample = shapes[index]
            folder = root / "folder" / split / IDS[sample.label]
            folder.mkdir(parents=True, exist_ok=True)
            to_pillow(sample.image).save(folder / f"{split}_{index:05d}.JPEG", quality=90)
    command(["pack", root / "folder", root / "shards", "shard_megabytes=4"])
    return root


def command(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mambar", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def trained(source, out, processes):
    """(rows of the log, weights, result) of the shortened recipe."""
    many = ["--processes", processes] if processes > 1 else []
    command(["train", "mambar_base", f"data={source}", f"out={out}", *SHORT, *many])
    rows = [
        {name: value for name, value in row.items() if name not in OWN} for row in read_metrics(out / "metrics.jsonl")
    ]
    return rows, load_file(out / "model.safetensors"), json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "one, two",
    [
        (("folder", 1), ("shards", 2)),
        pytest.param(("shards", 1), ("folder", 2), marks=pytest.mark.soak),
    ],
)
def test_three_stages_give_the_same_numbers_from_folder_and_shards_on_one_and_two_processes(
    tmp_path, sources, one, two
):
    rows, weights, result = trained(sources / one[0], tmp_path / "one", one[1])
    training = [row for row in rows if row["kind"] == "training"]
    assert [(row["step"], row["stage"]) for row in training] == [(step, (step - 1) // 3) for step in range(1, 10)]
    evaluated = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["stage"] for row in evaluated] == [0, 1, 2]
    # 23 images over two processes: one has twelve, and none is counted twice.
    for row in evaluated:
        assert row["top1"] * 23 == pytest.approx(round(row["top1"] * 23), abs=1e-9)
    others, other_weights, other_result = trained(sources / two[0], tmp_path / "two", two[1])
    assert others == rows and other_result == result
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    # The last stages have the larger grid: 6 x 6 patches.
    assert any(36 in tensor.shape for tensor in weights.values())
    assert "tench" in (tmp_path / "two" / "report.html").read_text()


def test_the_folder_is_what_imagenet_looks_like(sources):
    files = sorted((sources / "folder" / "val").rglob("*.JPEG"))
    assert len(files) == 23 and {file.parent.name for file in files} == set(IDS)
    assert Image.open(files[0]).size == (56, 56)
    assert sorted(path.suffix for path in (sources / "shards").iterdir())[0] in (".json", ".npz", ".tar")
