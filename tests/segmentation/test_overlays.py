"""Pictures of labels."""

import io

import numpy as np
import pytest
from PIL import Image

from mambar.data.segmentation.masks import IGNORE, palette
from mambar.segmentation import Segmentation, overlays
from mambar.segmentation.overlays import (
    add_legend,
    colorize_labels,
    draw_errors,
    draw_overlay,
    index_png,
    label_borders,
)

LABELS = np.array([[0, 0, 1], [0, 2, IGNORE]], dtype=np.uint8)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_index_png_gives_the_labels_back():
    data = index_png(LABELS, COLORS)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), LABELS)
        assert np.asarray(picture.convert("RGB"))[0, 2].tolist() == [0, 255, 0]


def test_coloured_labels():
    assert colorize_labels(LABELS, COLORS)[1].tolist() == [[255, 0, 0], [0, 0, 255], [255, 255, 255]]


def test_painted_keeps_ignored_pixels_and_leans_to_the_class():
    image = np.full((3, 2, 3), 100, dtype=np.uint8)
    out = draw_overlay(image, LABELS, COLORS)
    assert out[1, 2].tolist() == [100, 100, 100]
    assert out[0, 0, 0] > 150 and out[0, 0, 1] < 80


def test_errors_and_borders():
    wrong = draw_errors(np.zeros_like(LABELS), LABELS)
    assert wrong[0, 0].tolist() == [226, 226, 226] and wrong[0, 2].tolist() == [196, 40, 32]
    assert wrong[1, 2].tolist() == [255, 255, 255]
    assert label_borders(np.array([[1, 1, 2], [1, 1, 1]], dtype=np.uint8)).tolist() == [
        [False, True, True],
        [False, False, False],
    ]


@pytest.mark.parametrize("width", [1, 20, 320, 1000])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_legend_fits(width, count):
    picture = np.zeros((30, width, 3), dtype=np.uint8)
    shares = [(f"a class of a long name {index}", color, 0.5) for index, color in enumerate(palette(count))]
    sheet = add_legend(picture, shares)
    assert sheet.shape[1] >= 320 or width >= 320
    assert sheet.shape[1] % width == 0
    below = sheet[30 * (sheet.shape[1] // width) :]
    assert (below.shape[0] == 0) is (count == 0)
    seen = {tuple(pixel) for pixel in below.reshape(-1, 3)} if count else set()
    assert {color for _, color, _ in shares} <= seen


def test_row_names_stand_in_their_rows():
    picture = np.full((90, 400, 3), 100, dtype=np.uint8)
    changed = (add_legend(picture, [], row_names=["image", "", "mask"]) != picture).any(2).reshape(3, 30, 400)
    assert changed.any((1, 2)).tolist() == [True, False, True] and not changed[:, :, 100:].any()


@pytest.mark.parametrize("name", ["$x^2$", "<b>&", "\x1b[31m", "猫", "a" * 500, ""])
def test_hostile_names_are_drawn(name):
    add_legend(np.zeros((4, 400, 3), dtype=np.uint8), [(name, (1, 2, 3), 1.0)])


def test_overlays_in_bands_are_those_of_the_whole(monkeypatch):
    generator = np.random.default_rng(0)
    image, labels = generator.integers(0, 256, (3, 50, 7), np.uint8), generator.integers(0, 3, (50, 7), np.uint8)
    whole = draw_overlay(image, labels, palette(3))
    monkeypatch.setattr(overlays, "_BAND_ROWS", 8)
    assert np.array_equal(draw_overlay(image, labels, palette(3)), whole)


@pytest.mark.parametrize("shape", [(40_000, 1), (1, 40_000), (30_000, 3), (9_000, 4_000)])
def test_pictures_are_bounded_for_any_shape(shape):
    found = Segmentation(
        name="long",
        image=np.zeros((3, *shape), np.uint8),
        labels=np.zeros(shape, np.uint8),
        confidence=np.ones(shape, np.float32),
        classes=("a", "b"),
        palette=((1, 2, 3), (4, 5, 6)),
    )
    drawn = found.overlay()
    assert max(drawn.shape) <= overlays.MAX_SIDE
    sheet = add_legend(drawn, found.legend())
    assert max(sheet.shape) <= 2 * overlays.MAX_SIDE + 100 and sheet.size < 3 * 70e6
