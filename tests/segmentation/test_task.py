"""The task through the Trainer: learns, resumes bit for bit, and does not see how many processes it has."""

import dataclasses
import json
import signal
import time

import pytest
import torch

from mambar.data.loading.loaders import Batch
from mambar.data.registry import open_dataset
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.data.transforms.segmentation import MaskChannelDataset
from mambar.errors import DataError, InputError, RecipeError
from mambar.evaluation.segmentation import compute_metrics, count_pixels
from mambar.segmentation import (
    Inference,
    SegmentationOptions,
    SegmentationTask,
    evaluate,
    evaluate_run,
    is_segmenter,
    load_segmenter,
    segment,
)
from mambar.training.loop.optim import param_groups
from mambar.training.recipe import Recipe, Stage
from scene_parse import write_scene_parse
from training import runs

OPTIONS = {
    "channels": 8,
    "aux_channels": 8,
    "resize": (64, 32),
    "ratio": (0.75, 1.5),
    "eval_crop": 24,
    "eval_stride": 16,
    "eval_scales": (1.0, 0.75),
    "eval_flip": True,
}


def tiny(data, **changes):
    """ADE20K's chain on a few scenes of 32 pixels, with every source of randomness on."""
    recipe = Recipe(
        name="tiny",
        model="mambar_tiny_patch16_224",
        task="segmentation",
        task_options=OPTIONS,
        config={
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 4,
            "num_registers": 2,
            "register_reduction": 2,
            "d_state": 4,
        },
        data=str(data),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        stages=(
            Stage(
                img_size=24,
                epochs=2,
                batch_size=4,
                lr=2e-3,
                warmup_steps=2,
                schedule="linear",
                decay_groups="corrected",
                clip_grad=1.0,
                drop_path_rate=0.2,
                ema_decay=0.9,
            ),
        ),
        seed=7,
        precision="fp32",
        num_shards=2,
        save_every=1,
        log_every=1,
    )
    return recipe.replace(**changes)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve training and five validation scenes in the layout of SceneParse150."""
    root = tmp_path_factory.mktemp("scenes")
    for split, number in (("train", 12), ("val", 5)):
        write_scene_parse(
            open_dataset("shapes", split, kind="segmentation", img_size=32, num_classes=3), root, split, limit=number
        )
    return root


@pytest.fixture(scope="module")
def unbroken(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert runs.finish(runs.start(tiny(scenes), out, before=(runs.register_segmentation,))) == [0]
    return runs.trace(out)


@pytest.mark.slow
@pytest.mark.rel
def test_p4_killed_and_resumed_equals_unbroken(scenes, unbroken, tmp_path):
    out = tmp_path / "run"
    killed = 0
    for attempt in range(12):
        process = runs.start(tiny(scenes), out, before=(runs.register_segmentation,), resume=attempt > 0)
        seen, deadline = runs.steps_in(out), time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline and runs.steps_in(out) < seen + 2:
            time.sleep(0.01)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    else:
        assert runs.finish(runs.start(tiny(scenes), out, before=(runs.register_segmentation,), resume=True)) == [0]
    assert killed and runs.trace(out) == unbroken


@pytest.mark.slow
@pytest.mark.rel
def test_p5_two_processes_equal_one(scenes, unbroken, tmp_path):
    out = tmp_path / "run"
    befores = dict.fromkeys(range(2), (runs.register_segmentation,))
    assert runs.finish(*runs.start_group(tiny(scenes), out, world=2, befores=befores)) == [0, 0]
    found = runs.trace(out)
    assert (found.tensors, found.model) == (unbroken.tensors, unbroken.model)
    of_kind = [[row for row in each.metrics if row["kind"] == "evaluation"] for each in (found, unbroken)]
    for mine, other in zip(*of_kind, strict=True):
        # Whole numbers of pixels add up exactly; the loss is a sum of floats.
        assert {k: v for k, v in mine.items() if "loss" not in k} == {k: v for k, v in other.items() if "loss" not in k}


@pytest.mark.slow
def test_a_run_from_recipe_to_files(scenes, tmp_path):
    out = tmp_path / "run"
    runs.here(tiny(scenes), out)
    page = (out / "report.html").read_text("utf-8")
    for heading in ("Curves", "Classes", "Confusion matrix", "Images", "Recipe"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("mIoU ") >= 4 and (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = load_segmenter(out)
    assert model.classes == ("background", "disc", "square", "triangle") and len(model.palette) == 4
    # Neither the auxiliary head nor the classifier is handed over.
    assert not any("auxiliary" in name for name in model.state_dict())
    val = MaskChannelDataset(open_dataset(scenes, "val", kind="segmentation"))
    inference = Inference(crop=24, stride=16, resize=(64, 32), scales=(1.0, 0.75), flip=True)
    counted = None
    for index in range(len(val)):
        pixels = val[index].image
        labels = torch.from_numpy(segment(model, pixels[:3], inference=inference).labels)
        each = count_pixels(labels, pixels[3], 4)
        counted = each if counted is None else counted + each
    metrics = json.loads((out / "result.json").read_text("utf-8"))["metrics"]
    assert compute_metrics(counted, model.classes).miou == pytest.approx(metrics["miou"], abs=1e-12)
    assert evaluate_run(out).miou == pytest.approx(metrics["miou"], abs=1e-12)
    with pytest.raises(DataError, match="has 3 classes"):
        evaluate_run(out, data="mosaics")
    # As if the run had been interrupted: the best checkpoint is used.
    (out / "config.json").unlink()
    checkpoint = load_segmenter(out)
    assert is_segmenter(out) and checkpoint.classes == model.classes
    assert checkpoint.state_dict().keys() == model.state_dict().keys()
    before = {path.name: path.read_bytes() for path in out.glob("model*")}
    assert runs.here(tiny(scenes), out, resume=True).already_finished
    assert before == {path.name: path.read_bytes() for path in out.glob("model*")}


@pytest.mark.slow
def test_frozen_stage_then_all_of_it(scenes, tmp_path):
    """Two stages: the second goes on from the first's decoder, too."""
    frozen = dataclasses.replace(
        tiny(scenes).stages[0], name="frozen", epochs=1, freeze_backbone=True, drop_path_rate=0.0
    )
    whole = dataclasses.replace(frozen, name="whole", freeze_backbone=False, start_from="weights", lr=1e-9, min_lr=0.0)
    options = {**OPTIONS, "decoder": "linear", "aux_channels": 0}
    recipe = tiny(scenes, stages=(frozen, whole), task_options=options, eval_every=1)
    runs.here(recipe, tmp_path / "run")
    rows = [row for row in runs.read_rows(tmp_path / "run") if row["kind"] == "evaluation"]
    # With a rate of next to nothing the second stage stays where the first ended.
    assert len(rows) == 2 and rows[0]["val_loss"] == pytest.approx(rows[1]["val_loss"], rel=1e-3)


def task(options=None, **changes):
    recipe = tiny("shapes", task_options={**OPTIONS, "init_class_bias": False, **(options or {})}, **changes)
    return SegmentationTask(recipe, recipe.stages[0], classes=("a", "b", "c"))


def batch(count=4, side=24):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 4, side, side), dtype=torch.uint8, generator=generator)
    images[:, 3] %= 3
    return Batch(
        {"images": images, "labels": torch.zeros(count, dtype=torch.int64), "indices": torch.arange(count)}, 0, 0
    )


def test_parameters_are_decayed_as_published(tiny_mamba):
    """No decay on positions, registers, norms, biases, A_log and D; layers scaled by their depth."""
    model = task().build_model(tiny_mamba)
    stage = Stage(weight_decay=0.01, decay_groups="corrected", layer_decay=0.5)
    found = param_groups(tiny_mamba, stage, model=model, prefix="segmenter.backbone.")
    place = {name: part for part in found for name in part["names"]}
    assert set(place) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, part in place.items():
        plain = any(word in name for word in ("pos_embed", "registers", "norm", "A_log", "bias"))
        assert (part["weight_decay"] == 0) is (plain or name.endswith(".D")), name
    start = "segmenter.backbone."
    assert place[f"{start}patch_embed.proj.weight"]["lr_scale"] == 0.5**5
    assert place[f"{start}blocks.0.mixer.in_proj.weight"]["lr_scale"] == 0.5**4
    assert place[f"{start}blocks.3.mixer.in_proj.weight"]["lr_scale"] == 0.5
    assert place["segmenter.decoder.head.classifier.weight"]["lr_scale"] == 1


def test_the_decoder_follows_the_key_and_no_generator(make_backbone):
    torch.manual_seed(1)
    first = task(seed=5).build_model(make_backbone()).auxiliary.state_dict()
    torch.manual_seed(2)
    second = task(seed=5).build_model(make_backbone()).auxiliary.state_dict()
    other = task(seed=6).build_model(make_backbone()).auxiliary.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_classifiers_begin_with_the_shares_of_the_classes(tiny_mamba):
    recipe = tiny("shapes", data_options={"img_size": 32, "num_images": 40, "num_classes": 3})
    chosen = SegmentationTask.from_recipe(recipe, recipe.stages[0], classes=("background", "a", "b", "c"))
    model = chosen.build_model(tiny_mamba)
    dataset = open_dataset("shapes", "train", kind="segmentation", **recipe.data_options)
    masks = torch.stack([dataset[index].mask for index in range(len(dataset))])
    shares = torch.bincount(masks.flatten(), minlength=4).double() / masks.numel()
    expected = (0.9 * shares + 0.1 / 4).log().float()
    for head in (model.segmenter.decoder, model.auxiliary):
        torch.testing.assert_close(head.classifier.bias.detach(), expected)
    options = {**OPTIONS, "init_class_bias": False}
    plain = SegmentationTask.from_recipe(
        recipe.replace(task_options=options), recipe.stages[0], classes=("a", "b", "c", "d")
    )
    assert plain.build_model(tiny_mamba).auxiliary.classifier.bias.abs().sum() == 0


def test_loss_and_its_parts(make_backbone):
    plain = task()
    model = plain.build_model(make_backbone()).eval()
    prepared = plain.prepare(batch(), seed=0, epoch=0)
    assert prepared.images.shape == (4, 3, 24, 24) and prepared["targets"].shape == (4, 24, 24)
    whole = plain.loss(model, prepared)
    parts = [plain.loss(model, prepared.slice(start, start + 2)) for start in (0, 2)]
    torch.testing.assert_close(whole["loss"], (parts[0]["loss"] + parts[1]["loss"]) / 2)
    torch.testing.assert_close(whole["num_correct"], parts[0]["num_correct"] + parts[1]["num_correct"])
    main, auxiliary = model(prepared.images)
    expected = plain._loss_of(main, prepared["targets"]) + 0.4 * plain._loss_of(auxiliary, prepared["targets"])
    torch.testing.assert_close(whole["loss"], expected)
    with_dice = task(options={"dice_weight": 1.0, "class_weights": [1.0, 2.0, 0.0]})
    assert with_dice.loss(model, prepared)["loss"] > 0


@pytest.mark.parametrize("size", [16, 24, 40])
def test_evaluating_a_batch_equals_image_by_image(make_backbone, size):
    model = task().build_model(make_backbone()).segmenter
    settings = Inference(crop=24, stride=16)
    given = {"classes": ("a", "b", "c"), "preprocessing": Preprocessing(img_size=24), "inference": settings}
    images = batch(3, size).images
    together = evaluate(model, [batch(3, size)], **given)
    labels, indices = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    singly = evaluate(
        model,
        [Batch({"images": images[i : i + 1], "labels": labels, "indices": indices}, i) for i in range(3)],
        **given,
    )
    assert (together.confusion == singly.confusion).all()
    assert together.loss == pytest.approx(singly.loss, rel=1e-6) and together.boundary_f == singly.boundary_f


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": 3}, "did you mean 'channels'"),
        ({"channels": "many"}, "task_options.channels='many'"),
        ({"eval_stride": 900}, "stride=900"),
        ({"ratio": (2.0, 1.0)}, "ratio="),
        ({"aux_channels": -1}, "aux_channels=-1"),
        ({"dice_weight": float("nan")}, "dice"),
        ({"class_weights": (-1.0,)}, "class_weights"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        SegmentationOptions.of(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_options": {**OPTIONS, "norm": "batch"}}, "norm=batch with num_shards=2"),
        ({"mixup": 0.8}, "mixup=0.8 has no effect on segmentation"),
        ({"task_options": {**OPTIONS, "class_weights": (1.0,)}}, "1 values for 3 classes"),
    ],
)
def test_recipes_that_make_no_sense(changes, message):
    recipe = tiny("shapes", **changes)
    with pytest.raises(RecipeError, match=message):
        SegmentationTask.from_recipe(recipe, recipe.stages[0], classes=("a", "b", "c"))


def test_options_from_the_command_line():
    recipe = tiny("shapes").with_overrides(
        ["task_options.eval_scales=[0.5,1.0]", "task_options.resize=none", "warmup_steps=9"]
    )
    options = SegmentationOptions.of(recipe.task_options)
    assert options.eval_scales == (0.5, 1.0) and options.resize is None and recipe.stages[0].warmup_steps == 9
    assert Recipe.from_json(recipe.to_json()).task_options.keys() == recipe.task_options.keys()
