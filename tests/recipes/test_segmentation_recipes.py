"""The pages of segmentation: the published ADE20K values, and options that the task takes."""

import pytest
import torch

import mambar
from mambar.data.transforms.classification import to_pil_image
from mambar.models.config import VARIANTS
from mambar.recipes.index import ENTRIES, get_recipe
from mambar.segmentation import SegmentationOptions, SegmentationTask, load_segmenter
from mambar.training.loop.schedule import LearningRate

SEGMENTING = [name for name in ENTRIES if get_recipe(name).task == "segmentation"]


@pytest.mark.parametrize("name", SEGMENTING)
def test_the_task_takes_every_page(name):
    chosen = get_recipe(name)
    task = SegmentationTask.from_recipe(chosen, chosen.stages[0], classes=("a", "b"))
    assert task.options == SegmentationOptions.of(chosen.task_options)


@pytest.mark.parametrize(
    ("name", "peak", "drop_path", "layers"),
    [
        ("upernet_ade20k", 6e-5, 0.2, (5, 11, 17, 23)),
        ("upernet_ade20k_large", 3e-5, 0.3, (11, 23, 35, 47)),
    ],
)
def test_published_values_of_ade20k(name, peak, drop_path, layers):
    """REFERENCE §5, typed once more here."""
    chosen = get_recipe(name)
    (stage,) = chosen.stages
    assert (stage.batch_size, stage.max_steps, stage.warmup_steps) == (16, 160_000, 1_500)
    assert (stage.peak_lr, stage.weight_decay, stage.drop_path_rate) == (peak, 0.01, drop_path)
    assert (stage.schedule, stage.decay_groups, stage.layer_decay, stage.img_size) == ("linear", "corrected", 1, 512)
    options = SegmentationOptions.of(chosen.task_options)
    assert (options.channels, options.aux_channels, options.aux_weight) == (512, 256, 0.4)
    assert (options.resize, options.ratio, options.max_class_fraction) == ((2048, 512), (0.5, 2.0), 0.75)
    assert (options.eval_crop, options.eval_stride, options.eval_scales, options.eval_flip) == (512, 341, (1.0,), False)
    task = SegmentationTask.from_recipe(chosen, stage, classes=("a",))
    from mambar.segmentation import SegmenterConfig

    assert SegmenterConfig(layers=options.layers).layer_indices(VARIANTS[chosen.model].depth) == layers
    assert task.transform.size == (512, 512)
    # 20,210 training images, 1,263 steps an epoch.
    assert stage.epochs * 1263 >= stage.max_steps
    rates = LearningRate(stage=stage, steps=160_000, steps_per_epoch=1263)
    assert rates.at(1_500) == pytest.approx(peak, rel=0.01) and rates.at(160_000) == 0.0
    assert rates.at(750) == pytest.approx(peak / 2, rel=0.01)


def test_upernet_trains_on_own_folders_without_an_option(tmp_path):
    for number in range(5):
        image = torch.randint(0, 255, (3, 20, 24), generator=torch.Generator().manual_seed(number)).byte()
        mask = (image[0] > 100).byte()
        for folder, name, pixels in (("images", f"{number}.jpg", image), ("masks", f"{number}.png", mask[None])):
            (tmp_path / "mine" / folder).mkdir(parents=True, exist_ok=True)
            to_pil_image(pixels).save(tmp_path / "mine" / folder / name)
    small = {"epochs": 1, "max_steps": 1, "batch_size": 2, "img_size": 16}
    chosen = get_recipe("upernet").replace(**small, config={"depth": 2, "patch_size": 8, "num_registers": 2})
    result = mambar.run(chosen, data=tmp_path / "mine", out=tmp_path / "run", device="cpu", num_workers=0)
    assert set(result.metrics) >= {"miou", "pixel_accuracy"}
    assert load_segmenter(tmp_path / "run").classes == ("class 0", "class 1")
