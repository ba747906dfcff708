import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.transforms.preprocessing import INTERPOLATIONS, Preprocessing
from mambar.errors import InputError

SIZES = st.one_of(st.integers(1, 999), st.tuples(st.integers(1, 999), st.integers(1, 999)))
SETTINGS = st.builds(
    Preprocessing,
    img_size=SIZES,
    crop_pct=st.floats(0.01, 1.0),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 1)] * 3),
)


@given(SETTINGS)
def test_json_brings_it_back(setting):
    assert Preprocessing.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


def test_normalization_is_torchvisions_bit_for_bit():
    from torchvision.transforms import functional

    pixels = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    setting = Preprocessing()
    expected = functional.normalize(pixels.float().div(255), list(setting.mean), list(setting.std))
    assert torch.equal(setting.normalize(pixels), expected)
    assert torch.equal(setting.normalize(pixels[None].repeat(4, 1, 1, 1))[2], expected)
    assert torch.equal(setting.denormalize(expected), pixels)


def test_gray_images_have_one_mean():
    setting = Preprocessing(mean=(0.5,), std=(0.5,))
    assert setting.normalize(torch.full((1, 2, 2), 255, dtype=torch.uint8)).eq(1.0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"img_size": 0},
        {"img_size": (32, -1)},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"crop_pct": float("nan")},
        {"interpolation": "bicubik"},
        {"mean": (0.5, 0.5)},
        {"std": (0.0, 0.1, 0.1)},
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong):
    with pytest.raises(InputError) as caught:
        Preprocessing(**wrong)
    assert next(iter(wrong)) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="no field 'sise'"):
        Preprocessing.from_dict({"sise": 3})
    with pytest.raises(InputError, match="preprocessing="):
        Preprocessing.from_dict({"mean": None})
