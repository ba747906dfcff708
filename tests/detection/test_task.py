"""The task through the Trainer: images of several sizes, bit-exact resume, any number of processes, all files."""

import json
import signal
import sys
import time

import pytest
import torch

import mambar
from mambar.data import open_dataset
from mambar.data.dataset import Sample
from mambar.data.detection.coco_export import write_coco
from mambar.data.detection.object_masks import compressed_masks, target_objects
from mambar.data.loading.loaders import Batch, training_batches
from mambar.detection import DetectionTask, Detector, detect, evaluate_run, load_detector, save_detector
from mambar.detection.detector import paste_mask, strides
from mambar.errors import BackendUnavailable, DataError, ImageError, InputError, RecipeError
from mambar.models.timm_vit import create_timm_vit
from mambar.recipes.index import ENTRIES, get_recipe
from mambar.training.recipe import Recipe, Stage
from mambar.training.task_registry import task_class
from training import runs

OPTIONS = {
    "masks": True,
    "channels": 16,
    "head_dim": 16,
    "anchor_scale": 3.0,
    "num_proposals": 30,
    "rois_per_image": 16,
    "train_sizes": (24, 28),
    "max_size": 40,
    "max_detections": 10,
    "score_threshold": 0.0,
}
HEADS = {"num_classes": 2, "channels": 8, "head_dim": 8, "min_size": 32, "max_size": 64}
CONFIG = {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_registers": 2, "register_reduction": 2, "d_state": 4}


def tiny(data, **changes):
    """Drawn scenes of two sizes in 6 steps of 4 images, with every source of randomness on."""
    recipe = Recipe(
        name="tiny",
        model="mambar_tiny_patch16_224",
        task="detection",
        task_options=OPTIONS,
        config=CONFIG,
        data=str(data),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        stages=(
            Stage(
                img_size=32,
                epochs=2,
                batch_size=4,
                lr=2e-3,
                warmup_steps=2,
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


@pytest.fixture
def make_backbone():
    def make(**changes):
        torch.manual_seed(0)
        return mambar.create_model("mambar_tiny_patch16_224", **{**CONFIG, "num_classes": 0, "img_size": 32, **changes})

    return make


class TwoSizes:
    """Scenes in turn wide and high."""

    def __init__(self, split, count):
        options = {"num_classes": 3, "num_images": count}
        sizes = ((32, 40), (48, 36))
        self.parts = [open_dataset("shapes", split, kind="detection", img_size=size, **options) for size in sizes]
        self.name, self.classes, self.count = "two sizes", self.parts[0].classes, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.parts[index % 2][index]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve and five scenes as COCO files; one without objects, one with a crowd, one image damaged in each split.

    Masks are run lengths, one is a polygon, and one is compressed.
    """
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 12), ("val", 5)):
        write_coco(TwoSizes(split, count), root, split)
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text("utf-8"))
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 1]
        content["annotations"][0]["iscrowd"] = 1
        polygon, packed = content["annotations"][1:3]
        x, y, width, height = polygon["bbox"]
        polygon["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        (mask,) = compressed_masks([packed["segmentation"]], *packed["segmentation"]["size"])
        packed["segmentation"] = {**mask, "counts": mask["counts"].decode()}
        file.write_text(json.dumps(content), "utf-8")
        (root / split / "000003.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def unbroken(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert runs.finish(runs.start(tiny(scenes), out, before=(runs.register_detection,))) == [0]
    return runs.trace(out)


@pytest.mark.slow
@pytest.mark.rel
def test_p4_killed_and_resumed_equals_unbroken(scenes, unbroken, tmp_path):
    out = tmp_path / "run"
    process = runs.start(tiny(scenes), out, before=(runs.register_detection,))
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and runs.steps_in(out) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert runs.finish(runs.start(tiny(scenes), out, before=(runs.register_detection,), resume=True)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.slow
@pytest.mark.rel
def test_p5_two_processes_equal_one(scenes, unbroken, tmp_path):
    """All metrics too: detections are gathered by image."""
    out = tmp_path / "run"
    befores = dict.fromkeys(range(2), (runs.register_detection,))
    assert runs.finish(*runs.start_group(tiny(scenes), out, world=2, befores=befores)) == [0, 0]
    found = runs.trace(out)
    assert (found.tensors, found.model) == (unbroken.tensors, unbroken.model)
    of_kind = [[row for row in each.metrics if row["kind"] == "evaluation"] for each in (found, unbroken)]
    assert of_kind[0] == of_kind[1] and of_kind[0][0]["box_ap50"] is not None


@pytest.mark.slow
def test_a_run_from_recipe_to_files(scenes, tmp_path, caplog):
    out = tmp_path / "run"
    result = runs.here(tiny(scenes), out)
    assert "000003.png" in caplog.text
    page = (out / "report.html").read_text("utf-8")
    for heading in ("Curves", "Average precision", "Classes", "Images", "Recipe"):
        assert f"<h2>{heading}</h2>" in page
    assert "Average precision over time" in page
    assert result.metrics.keys() >= {"box_ap", "box_ap75", "box_ap_large", "mask_ap50", "mask_ap_small"}
    again = evaluate_run(out)
    shown = {name: value for name, value in result.metrics.items() if value == value}
    assert shown and {name: again.metrics[name] for name in shown} == shown
    # Image 3 is damaged, image 1 has no objects, and a crowd is no object.
    val = open_dataset(scenes, "val", kind="detection")
    objects = [each for index in (0, 1, 2, 4) for each in target_objects(val[index].targets)]
    assert again.num_images == 4 and again.num_objects == sum(not each.crowd for each in objects) < len(objects)
    model = load_detector(out)
    assert model.classes == ("disc", "square", "triangle")
    found = detect(model, val[2].image, threshold=0.0)
    height, width = val[2].image.shape[1:]
    assert len(found.boxes) == 10 and found.mask(0).shape == (height, width)
    assert found.boxes.min() >= 0 and (found.boxes <= torch.tensor([width, height, width, height])).all()
    with pytest.raises(DataError, match="has 4 classes"):
        evaluate_run(out, data="shapes", data_options={"num_classes": 4})
    with pytest.raises(InputError, match="is a detector, not a classifier; use `mambar detect`"):
        mambar.load(out)


def task(data="shapes", options=None, **changes):
    recipe = tiny(data, task_options={**OPTIONS, **(options or {})}, **changes)
    return DetectionTask(recipe, recipe.stages[0], classes=("a", "b", "c"))


def test_a_batch_of_several_sizes(scenes, make_backbone):
    """Sizes and flips follow the key; crowds are left out; targets are scaled like their images."""
    chosen, dataset = task(), open_dataset(scenes, "train", kind="detection")
    model = chosen.build_model(make_backbone()).train()
    (batch, *_) = training_batches(dataset, chosen.train_transform(), seed=1, epoch=0, batch_size=12)
    assert len({tuple(each.shape) for each in batch["pixels"]}) == 2 and min(map(len, batch["boxes"])) == 0
    samples = [dataset[index] for index in range(12)]
    assert sum(each.crowd for sample in samples for each in target_objects(sample.targets)) == 1
    for boxes, masks, is_first in zip(batch["boxes"], batch["masks"], batch["indices"] == 0, strict=True):
        assert len(boxes) == len(masks) and (not is_first or len(boxes) == len(samples[0].targets["boxes"]) - 1)
    first, again = (chosen.prepare(batch, seed=0, epoch=0) for _ in range(2))
    assert torch.equal(first.images, again.images) and first["sizes"] == again["sizes"]
    assert {min(size) for size in first["sizes"]} >= {24, 28} and max(map(max, first["sizes"])) <= 40
    assert first.images.shape[2] % 16 == 0 and first.images.shape[3] % 16 == 0
    names = ("sizes", "boxes", "labels", "masks")
    for size, boxes, labels, masks in zip(*map(first.__getitem__, names), strict=True):
        assert masks.shape == (len(boxes), *size) and (labels >= 1).all()
        for (x0, y0, x1, y1), mask in zip(boxes.tolist(), masks, strict=True):
            rows, cols = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            edges = (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)
            assert all(abs(float(edge) - given) <= 1.5 for edge, given in zip(edges, (x0, y0, x1, y1), strict=True))
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(chosen.loss(model, first))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert torch.allclose(losses[0]["loss"], sum(value for name, value in losses[0].items() if name != "loss"))
    losses[0]["loss"].backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


@pytest.mark.slow
def test_a_timm_vit_is_trained_saved_and_loaded(tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = Detector(create_timm_vit("vit_tiny_patch16_224", **arguments), **HEADS).train()
    targets = [{"boxes": torch.tensor([[2.0, 3.0, 20.0, 30.0]]), "labels": torch.tensor([2])}]
    losses = model(torch.randn(1, 3, 48, 32), [(40, 27)], targets)
    sum(losses.values()).backward()
    assert not [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    model.classes = ("a", "b")
    save_detector(tmp_path, model.eval())
    image = torch.full((3, 20, 30), 90, dtype=torch.uint8)
    found, again = (each.detect([image])[0] for each in (model, load_detector(tmp_path)))
    assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)


def test_any_patch_size(make_backbone):
    model = Detector(make_backbone(patch_size=4), **HEADS).eval()
    (found,) = model.detect([torch.zeros(3, 20, 30, dtype=torch.uint8)])
    assert found["boxes"].shape[1] == 4 and "masks" not in found
    assert strides(16) == [4, 8, 16, 32, 64] and strides(8)[0] == 4 and strides(2)[0] == 2
    with pytest.raises(InputError, match="patch_size=14 gives a pyramid of fractional strides"):
        strides(14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_and_masks_are_not_rounded_by_autocast(make_backbone, dtype):
    """bfloat16 has 8 bits: above 1,024 pixels, coordinates would be multiples of 8."""
    heads = {**HEADS, "max_size": 1333, "masks": True, "score_threshold": 0.0, "num_proposals": 50}
    model = Detector(make_backbone(), **heads)
    image = torch.randint(256, (3, 32, 1333), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype):
        (found,) = model.eval().detect([image])
        given = [{"boxes": torch.tensor([[1100.0, 3.0, 1211.0, 30.0]]), "labels": torch.tensor([2])}]
        given[0]["masks"] = torch.ones(1, 32, 1333, dtype=torch.uint8)
        losses = model.train()(torch.randn(1, 3, 32, 1344), [(32, 1333)], given)
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
    far = found["boxes"][:, 0][found["boxes"][:, 0] > 1024]
    assert len(far) and not torch.equal(far, far.to(dtype).float())
    assert paste_mask(found["masks"][0], found["boxes"][0], (32, 1333)).shape == (32, 1333)
    assert {each.dtype for each in losses.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"chanels": 3}, {}, "did you mean 'channels'"),
        ({"channels": "many"}, {}, "task_options.channels='many'"),
        ({"num_classes": 3}, {}, "task_options.num_classes is set by the data"),
        ({"max_size": 0}, {}, "task_options.max_size=0 is not allowed; it takes 1 to 8192 pixels"),
        ({"norm": "layer"}, {}, "norm='layer' is not known"),
        ({"norm": "batch"}, {}, "task_options.norm=batch would depend"),
        ({"layers": 3}, {}, r"layers=\(3,\) must be 4 backbone layers"),
        ({"train_sizes": "x"}, {}, "task_options.train_sizes=.x. is not allowed"),
        ({"layers": (1, 2)}, {}, r"layers=\(1, 2\) must be 4 backbone layers"),
        ({}, {"mixup": 0.8}, "mixup=0.8 has no effect on detection"),
        ({}, {"img_size": (32, 48)}, "is not the short side"),
        ({}, {"compile": True}, "compile=true is not supported"),
        ({}, {"parallel": "fsdp"}, "parallel=fsdp is not supported"),
    ],
)
def test_settings_that_make_no_sense(make_backbone, options, changes, message):
    with pytest.raises((RecipeError, InputError), match=message):
        task(options=options, **changes).build_model(make_backbone())


def test_labels_above_the_classes_are_refused():
    targets = {"boxes": torch.tensor([[1.0, 2.0, 9.0, 9.0]]), "box_labels": torch.tensor([3])}
    sample = Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), 0, targets=targets)
    with pytest.raises(DataError, match="box_labels has 3; labels of 3 classes count from 0"):
        task(options={"masks": False}).train_transform().transform_sample(sample, 0)


def test_a_missing_package_is_reported_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(BackendUnavailable, match=r"evaluation of boxes needs the package pycocotools"):
        task(options={"masks": False})


def test_data_without_boxes_are_refused_in_one_line(tmp_path):
    class Plain:
        classes = ("a",)

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.zeros(3, 16, 16, dtype=torch.uint8), 0

    task_class("detection")
    with pytest.raises(DataError, match="detection needs boxes; give data of objects"):
        mambar.run(tiny("shapes"), data={"train": Plain(), "val": Plain()}, out=tmp_path / "run", device="cpu")


def test_images_too_narrow_to_scale_are_refused_by_name(make_backbone):
    model = Detector(make_backbone(), **HEADS).eval()
    assert len(detect(model, torch.zeros(3, 1, 63, dtype=torch.uint8)).boxes) == 0
    message = "x.png of 64x1 pixels is too narrow for a long side of at most 64"
    with pytest.raises(ImageError, match=message):
        detect(model, torch.zeros(3, 1, 64, dtype=torch.uint8), name="x.png")
    chosen = task()
    empty = {"boxes": [torch.zeros(0, 4)], "box_labels": [torch.zeros(0)], "masks": [torch.zeros(0, 90, 2)]}
    batch = Batch({"pixels": [torch.zeros(3, 90, 2, dtype=torch.uint8)], **empty})
    with pytest.raises(ImageError, match="an image of 2x90 pixels is too narrow"):
        chosen.prepare(batch, seed=0, epoch=0)


@pytest.mark.parametrize("name", [name for name in ENTRIES if get_recipe(name).task == "detection"])
def test_the_task_takes_every_recipe(name):
    chosen = get_recipe(name)
    made = DetectionTask.from_recipe(chosen, chosen.stages[0], classes=("a", "b"))
    assert made.config.masks == name.startswith("mask") and made.config.min_size == chosen.stages[0].img_size
