import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pictures import photo
from mambar.data.keys import numpy_generator
from mambar.data.transforms.augment import (
    color_jitter,
    random_erasing,
    random_resized_crop_box,
    shift_and_flip,
    three_augment,
)

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class Scripted(np.random.Generator):
    """A generator that gives what it is told, to put our functions and a library's on the same draw."""

    def __init__(self, *values):
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def _next(self, *args, **kwargs):
        return self.values.pop(0)

    integers = uniform = random = _next


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.integers(0, 2**62),
)
def test_a_crop_lies_in_the_image(height, width, scale, k):
    top, left, rows, cols = random_resized_crop_box(height, width, tuple(scale), RATIO, numpy_generator(k))
    assert rows >= 1 and cols >= 1
    assert 0 <= top <= height - rows and 0 <= left <= width - cols


@pytest.mark.parametrize(("height", "width"), [(375, 500), (600, 80)])
def test_crops_are_distributed_as_torchvisions(height, width):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(2000)])
    generator = numpy_generator(0)
    ours = np.array([random_resized_crop_box(height, width, SCALE, RATIO, generator) for _ in range(2000)])
    grid = np.linspace(0.1, 0.9, 9)
    difference = np.abs(np.quantile(ours, grid, axis=0) - np.quantile(theirs, grid, axis=0))
    assert (difference < 0.05 * np.array([height, width, height, width])).all()


@pytest.mark.parametrize(
    ("choice", "name", "level"), [(0, "Desaturate", 10), (1, "Solarize", 5), (2, "GaussianBlurRand", 10)]
)
def test_three_augment_is_timms_3a(choice, name, level, monkeypatch):
    from timm.data import auto_augment

    monkeypatch.setattr(auto_augment.random, "uniform", lambda low, high: low + 0.4 * (high - low))
    image = photo(40, 50)
    theirs = auto_augment.AugmentOp(name, 1.0, level)(image)
    ours = three_augment(image, Scripted(choice, 0.1 + 0.4 * 1.9))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert not np.array_equal(np.asarray(ours), np.asarray(image))


def test_three_augment_takes_each_a_third_of_the_time():
    generator = numpy_generator(0)
    image = photo(4, 4)
    kinds = {"gray": 0, "other": 0}
    for _ in range(600):
        pixels = np.asarray(three_augment(image, generator)).astype(int)
        kinds["gray" if np.ptp(pixels, axis=2).max() == 0 else "other"] += 1
    assert 150 < kinds["gray"] < 250


def test_jitter_is_torchvisions():
    from torchvision.transforms import functional

    image = photo(30, 30)
    # Orders 2, 0, 1: saturation, brightness, contrast.
    ours = color_jitter(image, 0.3, Scripted(np.array([0.8, 1.25, 0.75]), np.array([0.5, 0.9, 0.1])))
    theirs = functional.adjust_saturation(image, 0.75)
    theirs = functional.adjust_contrast(functional.adjust_brightness(theirs, 0.8), 1.25)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_erasing_is_distributed_as_timms():
    from timm.data.random_erasing import RandomErasing

    generator, theirs = numpy_generator(0), RandomErasing(1.0, device="cpu")
    image = torch.ones(3, 32, 48)
    ours = np.array([float((random_erasing(image, generator) == 0).float().mean()) for _ in range(1500)])
    other = np.array([float((theirs(image.clone()) == 0).float().mean()) for _ in range(1500)])
    assert image.min() == 1
    grid = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.quantile(ours, grid) - np.quantile(other, grid)).max() < 0.02


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("height, width", [(5, 7), (8, 8)])
def test_a_shift_is_torchvisions_pad_crop_and_flip(height, width, flipped):
    from torchvision.transforms.v2 import functional

    image, padding = torch.from_numpy(np.array(photo(height, width))).permute(2, 0, 1), 9
    before = image.clone()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            theirs = functional.crop(functional.pad(image, [padding] * 4), top, left, height, width)
            theirs = functional.horizontal_flip(theirs) if flipped else theirs
            ours = shift_and_flip(image, top - padding, left - padding, flipped=flipped)
            assert torch.equal(ours, theirs) and ours.is_contiguous()
    assert torch.equal(image, before)
