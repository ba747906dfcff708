"""A whole recipe from the command line: the three published stages, shortened, on a folder and on tar shards."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mambar.data import Preprocessing, Shapes
from mambar.data.transforms.classification import to_pil_image
from mambar.hub import save_model
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.recipes.index import get_recipe
from mambar.recipes.run import run
from mambar.training.metrics_log import read_metrics

IDS = ("n01440764", "n01443537", "n01484850")
SHORT = [
    *("config.embed_dim=32", "config.depth=2", "config.patch_size=8", "config.d_state=4"),
    *(
        "config.num_registers=3",
        "config.register_reduction=2",
        "num_shards=2",
        "log_every=1",
        "precision=fp32",
        "--num-workers=1",
    ),
    *("stages.0.img_size=32", "stages.1.img_size=48", "stages.2.img_size=48"),
    *(f"stages.{stage}.{field}" for stage in range(3) for field in ("epochs=1", "warmup_epochs=0.5", "batch_size=24")),
]
# Fields that depend on the clock and the machine.
OWN = ("images_per_second", "memory_gib")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """72 training and 23 validation images of the shapes, laid out as ImageNet is, and the same as tar shards."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 72), ("val", 23)):
        shapes = Shapes(split=split, img_size=56, num_images=count, num_classes=3)
        for index in range(count):
            sample = shapes[index]
            folder = root / "folder" / split / IDS[sample.label]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(sample.image).save(folder / f"{split}_{index:05d}.JPEG", quality=90)
    command(["pack", root / "folder", root / "shards", "--shard-megabytes=4"])
    return root


def command(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mambar", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def trained(source, out, processes):
    """(rows of the log, weights, result) of the shortened recipe."""
    many = ["--processes", processes] if processes > 1 else []
    command(["train", "mambar_base", f"data={source}", f"--out={out}", *SHORT, *many])
    rows = [
        {name: value for name, value in row.items() if name not in OWN} for row in read_metrics(out / "metrics.jsonl")
    ]
    result = json.loads((out / "result.json").read_text("utf-8"))
    # The digests differ, as the recipe names the place of the data.
    result = {name: value for name, value in result.items() if name not in ("recipe_sha256", "sha256")}
    return rows, load_file(out / "model.safetensors"), result


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
    assert weights["pos_embed.weight"].shape == (1, 36, 32)
    assert "tench" in (tmp_path / "two" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_the_folder_has_the_layout_of_imagenet(sources):
    files = sorted((sources / "folder" / "val").rglob("*.JPEG"))
    assert len(files) == 23 and {file.parent.name for file in files} == set(IDS)
    assert Image.open(files[0]).size == (56, 56)
    assert sorted(path.suffix for path in (sources / "shards").iterdir())[0] in (".json", ".npz", ".tar")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A trained model's directory: two blocks, 32 pixels, the three classes of `sources`' ids and one more."""
    directory = tmp_path_factory.mktemp("start") / "model"
    config = VisionMambaConfig(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_registers=2,
        register_reduction=2,
        d_state=4,
        num_classes=4,
    )
    torch.manual_seed(3)
    save_model(directory, VisionMamba(config), classes=["a", "b", "c", "d"], preprocessing=Preprocessing(img_size=32))
    return directory


def tuned(name, start, sources, out, *changes, source=None):
    """(weights before, weights after two steps) of a recipe that starts from `start`."""
    changes = ["batch_size=24", "max_steps=2", "warmup_epochs=0", "num_shards=1", "precision=fp32", *changes]
    recipe = get_recipe(name).with_overrides([f"start_from={start}", *changes])
    run(recipe, data=sources / "folder", out=out, device="cpu", num_workers=0)
    return load_file((source or start) / "model.safetensors"), load_file(out / "model.safetensors")


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("mambar.training.task.Task.report", lambda *arguments, **named: None)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_finetuning_starts_from_a_checkpoint_and_may_freeze_the_backbone(tmp_path, sources, start, no_report, frozen):
    before, after = tuned(
        "finetune", start, sources, tmp_path / "run", "img_size=32", f"freeze_backbone={frozen}", "lr=1e-2"
    )
    # A head for the data's three classes, not the model's four.
    assert (before["head.classifier.weight"].shape, after["head.classifier.weight"].shape) == ((4, 16), (3, 16))
    rest = {name for name in after if name.startswith(("blocks.", "norm.", "patch_embed.", "pos_embed", "registers."))}
    same = {name for name in rest if torch.equal(before[name], after[name])}
    assert rest and same == (rest if frozen else set())


@pytest.mark.slow
def test_layer_decay_moves_the_first_layers_least(tmp_path, sources, start, no_report):
    before, after = tuned(
        *("finetune", start, sources, tmp_path / "run", "img_size=32", "layer_decay=0.1", "lr=1e-3"),
        *("weight_decay=0", "min_lr=1e-3"),
    )
    # AdamW's first steps have the length of the learning rate, whatever the gradient.
    moved = [
        max(float((after[n] - before[n]).abs().max()) for n in after if n.startswith(f"blocks.{block}.mixer.in_proj"))
        for block in (0, 1)
    ]
    assert moved[1] / moved[0] == pytest.approx(10, rel=0.2)


@pytest.mark.slow
def test_a_larger_size_resizes_positions(tmp_path, sources, start, no_report):
    before, after = tuned("finetune_384", start, sources, tmp_path / "run", "img_size=48", "lr=1e-6", "min_lr=1e-6")
    assert (before["pos_embed.weight"].shape, after["pos_embed.weight"].shape) == ((1, 16, 16), (1, 36, 16))
    assert before["registers.position"].shape == after["registers.position"].shape
    assert float((before["blocks.0.mixer.in_proj.weight"] - after["blocks.0.mixer.in_proj.weight"]).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_later_stage_can_begin_alone(tmp_path, sources, start, no_report):
    recipe = get_recipe("mambar_base").with_overrides(
        [
            *(
                "stage=2",
                f"stages.2.start_from={start}",
                "stages.2.max_steps=2",
                "stages.2.batch_size=24",
                "num_shards=1",
            ),
            *(
                "config.embed_dim=16",
                "config.depth=2",
                "config.patch_size=8",
                "config.d_state=4",
                "config.num_registers=2",
            ),
            *("config.register_reduction=2", "stages.2.img_size=48", "precision=fp32"),
        ]
    )
    assert [stage.name for stage in recipe.stages] == ["finetune"]
    result = run(recipe, data=sources / "folder", out=tmp_path / "run", device="cpu", num_workers=0)
    # The rate is 1e-6 at first: after two steps the weights are still those of the start.
    before, after = load_file(start / "model.safetensors"), load_file(result.checkpoint)
    name = "blocks.1.mixer.in_proj.weight"
    assert 0 < float((before[name] - after[name]).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_stage_can_begin_at_a_checkpoint_of_another_run(tmp_path, sources, start, no_report):
    options = ["img_size=32", "lr=1e-3"]
    tuned("finetune", start, sources, tmp_path / "first", *options)
    (checkpoint,) = (tmp_path / "first" / "checkpoints").glob("step-00000002")
    still = ["lr=1e-12", "min_lr=0", "warmup_lr=0", "weight_decay=0", "img_size=32", "max_steps=1"]
    _, after = tuned("finetune", checkpoint, sources, tmp_path / "second", *still, source=start)
    expected = load_file(tmp_path / "first" / "model.safetensors")
    assert all(torch.allclose(expected[name], after[name], atol=1e-9, rtol=0) for name in expected)
    (best,) = (tmp_path / "first" / "checkpoints").glob("best-*")
    _, after = tuned("finetune", best, sources, tmp_path / "third", *still, source=start)
    assert all(torch.allclose(expected[name], after[name], atol=1e-9, rtol=0) for name in expected)
