import sys

import pytest
import torch

from mambar.data import EvalTransform, Preprocessing, evaluation_batches, open_dataset
from mambar.data.transforms.corruptions import KINDS, Corruption
from mambar.errors import InputError

SIZE = 48
CROP = EvalTransform(preprocessing=Preprocessing(img_size=SIZE))


@pytest.fixture(scope="module")
def image():
    return open_dataset("shapes", "val", img_size=64, num_images=4)[0].image


def test_there_are_the_fifteen_kinds_of_imagenet_c():
    assert len(KINDS) == len(set(KINDS)) == 15


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_determines_the_pixels(kind, image, need_package):
    need_package("corrupt_tta")
    first, again, other = (Corruption(transform=CROP, kind=kind, severity=4, seed=seed)(image) for seed in (0, 0, 1))
    assert first.shape == (3, SIZE, SIZE) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, CROP.pixels(image))
    without_draws = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(first, other) == (kind in without_draws)


@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise", "contrast", "fog"])
def test_a_higher_severity_changes_more(kind, image, need_package):
    need_package("corrupt_tta")
    crop = CROP.pixels(image).float()
    changes = [(Corruption(transform=CROP, kind=kind, severity=s)(image).float() - crop).abs().mean() for s in (1, 5)]
    assert changes[0] < changes[1]


def test_noise_has_the_deviation_of_imagenet_c(need_package):
    need_package("corrupt_tta")
    gray = torch.full((3, SIZE, SIZE), 128, dtype=torch.uint8)
    noisy = Corruption(transform=CROP, kind="gaussian_noise", severity=1)(gray).float()
    assert float(noisy.std()) == pytest.approx(0.08 * 255, rel=0.05)


def test_a_gray_image_stays_gray(image, need_package):
    need_package("corrupt_tta")
    assert Corruption(transform=CROP, kind="frost", severity=3)(image[:1]).shape == (1, SIZE, SIZE)


def test_workers_give_the_same_images(need_package):
    need_package("corrupt_tta")
    dataset = open_dataset("shapes", "val", img_size=64, num_images=4)
    transform = Corruption(transform=CROP, kind="impulse_noise", severity=2)
    alone, shared = (
        torch.cat([batch.images for batch in evaluation_batches(dataset, transform, batch_size=2, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, shared)


def test_wrong_choices_and_a_missing_library_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "corrupt_tta", None)
    with pytest.raises(InputError, match=r"needs the package corrupt-tta .extra robustness"):
        Corruption(transform=CROP, kind="fog", severity=1)
    with pytest.raises(InputError, match="did you mean 'frost'"):
        Corruption(transform=CROP, kind="frosts", severity=1)
    with pytest.raises(InputError, match="severity=6 does not exist; use 1 to 5"):
        Corruption(transform=CROP, kind="fog", severity=6)
