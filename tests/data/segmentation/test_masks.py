"""What is stored becomes labels; what is not known is one line."""

import io

import numpy as np
import pytest
from PIL import Image

from mambar.data.segmentation.masks import IGNORE, LabelTable, palette, read_mask
from mambar.errors import DataError, ImageError

TABLE = LabelTable(classes=("a", "b", "c"), values={0: 0, 1: 1, 2: 2, IGNORE: IGNORE})
COLORED = LabelTable(classes=("sky", "road"), colors={(0, 0, 255): 0, (90, 90, 90): 1, (0, 0, 0): IGNORE})


def png(array, mode=None, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if mode == "P":
        image = image.convert("L").copy()
        image.putpalette([channel for color in palette(256) for channel in color])
    image.save(stream, "PNG", **options)
    return stream.getvalue()


VALUES = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [png(VALUES), png(VALUES, "P"), png(VALUES.astype(np.uint16)), png(np.dstack([VALUES, VALUES]))],
    ids=["8 bit", "palette", "16 bit", "with alpha"],
)
def test_numbers(data):
    assert TABLE.labels(read_mask(data, name="m"), name="m").tolist() == [[0, 1, 2], [2, IGNORE, 0]]


def test_one_bit():
    assert TABLE.labels(read_mask(png(VALUES == 1), name="m"), name="m").tolist() == [[0, 1, 0], [0, 0, 0]]


def test_colors():
    stored = np.array([[[0, 0, 255], [90, 90, 90], [0, 0, 0]]], dtype=np.uint8)
    assert COLORED.labels(read_mask(png(stored), name="m"), name="m").tolist() == [[0, 1, IGNORE]]


def test_palette_images_give_their_colors_when_asked():
    table = LabelTable(classes=("x", "y"), colors={palette(2)[0]: 1, palette(2)[1]: 0})
    stored = read_mask(png(VALUES.clip(max=1), "P"), name="m", colors=True)
    assert table.labels(stored, name="m").tolist() == [[1, 0, 0], [0, 0, 1]]


def test_gray_saved_as_color_counts_as_numbers():
    stored = read_mask(png(np.dstack([VALUES] * 3)), name="m")
    assert TABLE.labels(stored, name="m").tolist() == [[0, 1, 2], [2, IGNORE, 0]]


@pytest.mark.parametrize(
    ("table", "array", "message"),
    [
        (TABLE, VALUES + 1, "m holds the value 3; known are 0-2, 255"),
        (TABLE, np.full((1, 1), 4660, dtype=np.uint16), "the value 4660"),
        (COLORED, np.full((1, 1, 3), 7, dtype=np.uint8), "the color #070707, which no class has"),
        (COLORED, VALUES, "holds numbers, but the classes have only colors"),
        (TABLE, np.array([[[1, 2, 3]]], dtype=np.uint8), "holds colors, but the classes have none"),
    ],
)
def test_unknown_is_one_line(table, array, message):
    with pytest.raises(ImageError, match=message) as caught:
        table.labels(read_mask(png(array), name="m"), name="m")
    assert "\n" not in str(caught.value)


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(VALUES).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b"nothing", "cannot be read as a PNG"), (jpeg(), "cannot be read as a PNG")],
)
def test_unreadable(data, message):
    with pytest.raises(ImageError, match=message):
        read_mask(data, name="bad\nname\x1b[31m")


def test_too_many_pixels_are_refused_before_decoding():
    with pytest.raises(ImageError, match="at most 5 are decoded"):
        read_mask(png(VALUES), name="m", max_pixels=5)


@pytest.mark.rel
def test_damaged_masks_are_image_errors():
    """Every cut, and bytes changed at random: an ImageError or a mask, nothing else."""
    whole = png(np.random.default_rng(0).integers(0, 3, (20, 20), dtype=np.uint8))
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(400):
        data = bytearray(whole[: int(rng.integers(len(whole)))] if trial % 2 else whole)
        for _ in range(3):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            read_mask(bytes(data), name="m")
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


@pytest.mark.parametrize(
    ("classes", "message"),
    [((), "at least one class"), (("a", "a"), "appears twice"), (tuple(map(str, range(256))), "256 classes")],
)
def test_bad_classes(classes, message):
    with pytest.raises(DataError, match=message):
        LabelTable(classes=classes)


def test_palette_keeps_the_colors_of_fewer_classes_and_repeats_none():
    many = palette(150)
    assert many[:10] == palette(10) and len(set(many)) == 150
