"""Image and mask stay together through scale, crop, flip and distortion; the key fixes every pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import photo
from mambar.data.dataset import Sample
from mambar.data.keys import numpy_generator
from mambar.data.registry import open_dataset
from mambar.data.segmentation.masks import IGNORE
from mambar.data.transforms.classification import pil_to_tensor
from mambar.data.transforms.segmentation import (
    MaskChannelDataset,
    SegmentationTransform,
    largest_class_fraction,
    photometric_distortion,
)
from mambar.errors import DataError, RecipeError

PLAIN = {"resize": None, "ratio": (1.0, 1.0), "max_class_fraction": 1.0, "hflip": 0.0, "distort": False}


def coded(height=40, width=56):
    """An image whose red channel is its label, so that a slip between the two shows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (height // 8, width // 8), dtype=torch.uint8, generator=generator)
    labels = labels.repeat_interleave(8, 0)
    labels = labels.repeat_interleave(8, 1)
    return torch.stack([labels * 40, labels * 0, labels * 0 + 9, labels])


@pytest.mark.parametrize("ratio", [(1.0, 1.0), (1.0, 2.0)])
def test_image_and_labels_go_together(ratio):
    transform = SegmentationTransform(img_size=24, resize=None, ratio=ratio, distort=False, fill=(200, 0, 0))
    stacked = coded()
    for key in range(40):
        out = transform(stacked, key)
        assert out.shape == (4, 24, 24) and out.dtype == torch.uint8
        expected = torch.where(out[3] == IGNORE, 200.0, out[3] * 40.0)
        away = (out[0].float() - expected).abs()
        # Bilinear red is between two labels near their border only.
        assert (away > 0).float().mean() < (0.01 if ratio == (1.0, 1.0) else 0.5)


def test_the_key_fixes_the_pixels():
    transform = SegmentationTransform(img_size=32, resize=(80, 60))
    stacked = torch.cat([pil_to_tensor(photo(50, 70)), torch.randint(0, 3, (1, 50, 70), dtype=torch.uint8)])
    assert torch.equal(transform(stacked, 7), transform(stacked, 7))
    assert not torch.equal(transform(stacked, 7), transform(stacked, 8))
    state = torch.get_rng_state()
    transform(stacked, 9)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_do_gives_the_image_itself():
    stacked = coded(32, 32)
    assert torch.equal(SegmentationTransform(img_size=32, **PLAIN)(stacked, 0), stacked)


def test_small_images_are_filled_up():
    stacked = coded(16, 40)
    out = SegmentationTransform(img_size=32, **PLAIN)(stacked, 0)
    assert torch.equal(out[:, :16], stacked[:, :, : out.shape[2]][:, :, :32]) or out.shape == (4, 32, 32)
    assert (out[3, 16:] == IGNORE).all() and out[:3, 20, 0].tolist() == [124, 116, 104]


def test_resize_comes_first():
    """(long, short) = (200, 100): an image of 50×60 is scaled to 100×120, of 50×200 to 50×200."""
    transform = SegmentationTransform(img_size=400, **{**PLAIN, "resize": (200, 100)})
    for size, expected in (((50, 60), (100, 120)), ((50, 200), (50, 200)), ((60, 50), (120, 100))):
        labels = transform(torch.zeros(4, *size, dtype=torch.uint8), 0)[3]
        rows, cols = (labels != IGNORE).nonzero().amax(0) + 1
        assert (int(rows), int(cols)) == expected


def test_flip_turns_both():
    stacked = coded(32, 32)
    out = SegmentationTransform(img_size=32, **{**PLAIN, "hflip": 1.0})(stacked, 0)
    assert torch.equal(out, stacked.flip(-1))


def test_crop_avoids_one_class_filling_it():
    """Half of the image one class: few crops of two classes where one has 75 % at most, and they are found."""
    labels = torch.zeros(1, 32, 128, dtype=torch.uint8)
    labels[..., 64:] = 1
    stacked = torch.cat([labels.expand(3, -1, -1), labels])
    careful = SegmentationTransform(img_size=32, **{**PLAIN, "max_class_fraction": 0.75})
    careless = SegmentationTransform(img_size=32, **PLAIN)

    def mixed(transform):
        return sum(largest_class_fraction(transform(stacked, key)[3]) < 0.75 for key in range(100))

    assert mixed(careful) > 70 > 35 > mixed(careless)


def test_largest_share_by_hand():
    labels = torch.tensor([[0, 0, 0, 1], [IGNORE] * 4], dtype=torch.uint8)
    assert largest_class_fraction(labels) == 0.75
    assert largest_class_fraction(labels[1:]) == 1.0 and largest_class_fraction(labels[:, :3]) == 1.0


def test_distortion_keeps_labels_and_changes_colors():
    stacked = torch.cat([pil_to_tensor(photo(32, 32)), torch.randint(0, 5, (1, 32, 32), dtype=torch.uint8)])
    transform = SegmentationTransform(img_size=32, **{**PLAIN, "distort": True})
    changed = [transform(stacked, key) for key in range(30)]
    assert all(torch.equal(each[3], stacked[3]) for each in changed)
    same = sum(torch.equal(each[:3], stacked[:3]) for each in changed)
    assert same < 5


def test_distortion_stays_within_its_ranges():
    """A gray picture keeps no hue to turn: it moves by 32 gray levels and by a factor 0.5-1.5 at most."""
    gray = Image.new("RGB", (4, 4), (100, 100, 100))
    seen = [np.asarray(photometric_distortion(gray, numpy_generator(key))).ravel() for key in range(300)]
    assert all(len(set(pixels.tolist())) == 1 for pixels in seen)
    levels = np.array([pixels[0] for pixels in seen])
    assert levels.min() >= round((100 - 32) * 0.5) - 1 and levels.max() <= round((100 + 32) * 1.5) + 1
    assert levels.min() < 50 and levels.max() > 160


def test_stacked_dataset():
    dataset = open_dataset("mosaics", "val", kind="segmentation", img_size=24)
    stacked = MaskChannelDataset(dataset)
    sample = stacked[3]
    assert sample.image.shape == (4, 24, 24) and torch.equal(sample.image[3], dataset[3].mask)
    assert len(stacked) == len(dataset) and stacked.fingerprint() == dataset.fingerprint()

    class Bare:
        name, classes, palette = "bare", ("a",), ((0, 0, 0),)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), 0)

        def fingerprint(self):
            return ""

    with pytest.raises(DataError, match="has no mask"):
        MaskChannelDataset(Bare())[0]


@pytest.mark.parametrize(
    "fields",
    [{"ratio": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"max_class_fraction": 0.0}, {"hflip": 2.0}, {"img_size": 0}],
)
def test_bad_fields(fields):
    with pytest.raises(RecipeError, match=next(iter(fields))):
        SegmentationTransform(**fields)
