import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.classification.folder import ImageFolder
from mambar.data.dataset import Sample
from mambar.data.loading.unreadable_images import UnreadableImages, evenly_spaced_samples, readable_samples
from mambar.errors import DataError, ImageError


def reader(bad, labels):
    def read(index):
        if index in bad:
            raise ImageError(f"image {index} is bad.")
        return Sample(torch.full((1, 1, 1), index % 256, dtype=torch.uint8), int(labels[index]))

    return read


LABELS = np.array([0, 0, 0, 1, 1, 2])


def read_all(bad, *, substitute, labels=LABELS):
    damage = UnreadableImages(labels, source="here", substitute=substitute)
    read = reader(bad, labels)
    return damage, [int(damage.read(read, index).image) for index in range(len(labels))]


def test_sound_images_are_themselves():
    damage, images = read_all(set(), substitute=True)
    assert images == list(range(6)) and damage.count == 0


@pytest.mark.parametrize(
    ("bad", "expected"),
    [({0}, [1, 1, 2, 3, 4, 5]), ({0, 1}, [2, 2, 2, 3, 4, 5]), ({2}, [0, 1, 0, 3, 4, 5]), ({5}, [0, 1, 2, 3, 4, 0])],
)
def test_the_next_of_its_class_stands_for_a_bad_one(bad, expected):
    damage, images = read_all(bad, substitute=True)
    assert images == expected
    assert damage.indices.tolist() == sorted(bad)


def test_each_is_named_once(caplog):
    damage = UnreadableImages(LABELS, source="here", substitute=True)
    with caplog.at_level(logging.WARNING, "mambar.data"):
        for _ in range(3):
            damage.read(reader({1}, LABELS), 1)
    assert [record.getMessage() for record in caplog.records] == ["skipped an unreadable image: image 1 is bad."]


def test_evaluation_gets_the_error():
    damage = UnreadableImages(LABELS, source="here", substitute=False)
    with pytest.raises(ImageError, match="image 4 is bad"):
        damage.read(reader({4}, LABELS), 4)
    assert damage.count == 1


def test_nothing_readable_ends_the_run():
    with pytest.raises(DataError, match="no image in here can be read; the first: image 0 is bad"):
        read_all(set(range(6)), substitute=True)


@given(st.integers(1, 3000), st.integers(1, 60))
def test_more_than_ten_and_more_than_a_hundredth_end_the_run(length, num_bad):
    num_bad = min(num_bad, length)
    labels = np.zeros(length, dtype=np.int64)
    damage = UnreadableImages(labels, source="here", substitute=False)
    read, stopped = reader(range(num_bad), labels), False
    for index in range(num_bad):
        try:
            damage.read(read, index)
        except DataError:
            stopped = True
            break
        except ImageError:
            pass
    assert stopped == (num_bad > 10 and num_bad > 0.01 * length)


def test_samples_at_an_even_stride_leave_out_the_unreadable(make_folder):
    root = make_folder({"train/ant": 2, "train/bee": 2, "val/ant": 7, "val/bee": 1})
    names = sorted((root / "val").glob("*/*"))
    names[2].write_bytes(b"no image")
    val = ImageFolder(root, "val")
    assert [index for index, _ in readable_samples(val, range(8))] == [0, 1, 3, 4, 5, 6, 7]
    assert len(evenly_spaced_samples(val, 4)) == 3 and len(evenly_spaced_samples(val, 99)) == 7
    assert val.unreadable.count == 1
    for file in names:
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 8 images"):
        evenly_spaced_samples(val, 8)
