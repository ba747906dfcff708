import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pictures import photo
from mambar.data.keys import key, numpy_generator, seeded_globals
from mambar.data.transforms.augment import random_resized_crop_box
from mambar.data.transforms.classification import (
    EvalTransform,
    Preprocessing,
    TrainTransform,
    pil_to_tensor,
    to_pil_image,
)
from mambar.errors import InputError, RecipeError

RAND = "rand-m9-mstd0.5-inc1"


def image(height, width, seed=0):
    return pil_to_tensor(photo(height, width, seed))


def test_pillow_and_back():
    pixels = image(5, 7)
    assert torch.equal(pil_to_tensor(to_pil_image(pixels)), pixels)
    assert torch.equal(pil_to_tensor(to_pil_image(pixels[:1])), pixels[:1])


@pytest.mark.parametrize("size", [32, 33, (32, 48)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(50, 70), (71, 40), (32, 32), (20, 25), (33, 97)])
def test_evaluation_is_timms(size, crop, interpolation, shape):
    from timm.data.transforms_factory import transforms_imagenet_eval

    theirs = transforms_imagenet_eval(size, crop_pct=crop, interpolation=interpolation)
    setting = Preprocessing(img_size=size, crop_pct=crop, interpolation=interpolation)
    pixels = image(*shape)
    expected = theirs(to_pil_image(pixels))
    ours = EvalTransform(preprocessing=setting)(pixels)
    assert ours.shape == expected.shape
    assert torch.equal(ours, expected)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.floats(0.2, 1.0))
def test_evaluation_gives_the_size_whatever_comes(height, width, rows, cols, crop):
    setting = Preprocessing(img_size=(rows, cols), crop_pct=crop)
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    assert EvalTransform(preprocessing=setting)(pixels).shape == (3, rows, cols)


def test_a_fitting_image_is_left_as_it_is():
    pixels = image(8, 8)
    assert EvalTransform(preprocessing=Preprocessing(img_size=8)).pixels(pixels) is pixels


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("height, width", [(60, 80), (33, 20)])
def test_the_resized_crop_is_torchvisions(interpolation, height, width):
    """To the bit that of tensors (where there is one), and that of Pillow but for one level of 255 here and there."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode, kept = InterpolationMode(interpolation), interpolation in ("nearest", "lanczos")
    setting = Preprocessing(img_size=32, interpolation=interpolation)
    pixels, transform = image(height, width), TrainTransform(preprocessing=setting, hflip=0.0)
    off = []
    for k in range(40):
        box = random_resized_crop_box(height, width, transform.scale, transform.ratio, numpy_generator(k))
        ours = transform.pixels(pixels, k)
        by_pillow = pil_to_tensor(functional.resized_crop(to_pil_image(pixels), *box, [32, 32], mode))
        if kept:
            assert torch.equal(ours, by_pillow)
        else:
            assert torch.equal(ours, functional.resized_crop(pixels, *box, [32, 32], mode, antialias=True))
            off.append((ours.int() - by_pillow.int()).abs())
    if not kept:
        assert torch.stack(off).max() <= 1 and torch.stack(off).float().mean() < 0.02


def test_randaugment_is_timms():
    from timm.data.auto_augment import rand_augment_transform

    setting = Preprocessing(img_size=32)
    transform = TrainTransform(preprocessing=setting, train_crop="center", hflip=0.0, auto_augment=RAND)
    options = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": setting.resampling}
    theirs = rand_augment_transform(RAND, options)
    pixels, changed = image(32, 32), 0
    for k in range(40):
        with seeded_globals(key(k, "randaugment")):
            expected = pil_to_tensor(theirs(to_pil_image(pixels)))
        ours = transform.pixels(pixels, k)
        assert torch.equal(ours, expected)
        changed += not torch.equal(ours, pixels)
    assert changed > 20


def global_states():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), numpy_state, torch.get_rng_state().tolist()


CHAINS = [
    {},
    {"auto_augment": "three", "color_jitter": 0.3},
    {"auto_augment": RAND, "random_erase_prob": 0.5},
    {"train_crop": "shift", "crop_padding": 4, "hflip": 0.0},
    {"train_crop": "center", "random_erase_prob": 1.0},
]


@pytest.mark.parametrize("chain", CHAINS)
def test_key_and_image_fix_the_result_and_nothing_else_moves(chain):
    transform = TrainTransform(preprocessing=Preprocessing(img_size=16), **chain)
    pixels = image(20, 30)
    before = pixels.clone()
    first = [transform(pixels, k) for k in range(12)]
    states = global_states()
    for k in reversed(range(12)):
        again = transform(pixels, k)
        assert again.shape == (3, 16, 16) and again.dtype == torch.float32 and again.is_contiguous()
        assert torch.equal(again, first[k])
    assert torch.equal(pixels, before)
    assert global_states() == states
    assert len({tuple(f.flatten().tolist()) for f in first}) > 6
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform and torch.equal(copy(pixels, 3), first[3])


def test_pixels_normalized_later_are_the_same():
    setting = Preprocessing(img_size=16)
    transform = TrainTransform(preprocessing=setting, auto_augment="three", color_jitter=0.3)
    pixels = image(20, 30)
    batch = torch.stack([transform.pixels(pixels, k) for k in range(4)])
    whole = torch.stack([transform(pixels, k) for k in range(4)])
    assert torch.equal(setting.normalize(batch), whole)
    with pytest.raises(InputError, match="random_erase_prob"):
        TrainTransform(preprocessing=setting, random_erase_prob=0.1).pixels(pixels, 0)


def test_a_shift_moves_by_at_most_the_padding():
    transform = TrainTransform(preprocessing=Preprocessing(img_size=8), train_crop="shift", crop_padding=1, hflip=0.0)
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pixels[:, 4, 4] = 255
    places = {tuple(transform.pixels(pixels, k)[0].nonzero()[0].tolist()) for k in range(100)}
    assert places == {(row, col) for row in (3, 4, 5) for col in (3, 4, 5)}


def test_flips_come_as_often_as_asked():
    setting = Preprocessing(img_size=8)
    pixels = image(8, 8)
    for chance in (0.0, 0.5, 1.0):
        transform = TrainTransform(preprocessing=setting, train_crop="center", hflip=chance)
        flipped = sum(torch.equal(transform.pixels(pixels, k), pixels.flip(-1)) for k in range(400))
        assert abs(flipped - 400 * chance) <= 40


def test_gray_images_pass():
    setting = Preprocessing(img_size=8, mean=(0.5,), std=(0.5,))
    transform = TrainTransform(preprocessing=setting, auto_augment="three", color_jitter=0.3)
    assert transform(image(9, 9)[:1], 0).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_crop": "resize"},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.1)},
        {"ratio": (2.0, 1.0)},
        {"crop_padding": -1},
        {"hflip": 2.0},
        {"random_erase_prob": float("nan")},
        {"color_jitter": -0.1},
        {"auto_augment": "rand-m9-boom"},
        {"auto_augment": "randaugment"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        TrainTransform(preprocessing=Preprocessing(), **wrong)


def test_shifted_crops_reach_every_place():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 5, 5)
    gray = Preprocessing(img_size=5, mean=(0.5,), std=(0.5,))
    transform = TrainTransform(preprocessing=gray, train_crop="shift", crop_padding=1, hflip=0.0)
    # The center pixel tells the shift.
    centers = {int(transform.pixels(image, k)[0, 2, 2]) for k in range(200)}
    assert centers == {int(image[0, 2 + down, 2 + right]) for down in (-1, 0, 1) for right in (-1, 0, 1)}
