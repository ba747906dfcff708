"""Folders of pictures for the data tests."""

import pytest
from hypothesis import settings

from data.pictures import encoded, photo

# No clock in tests: a loaded machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def make_folder(tmp_path):
    """A function that writes class folders: make_folder({"train/cat": 3, "train/dog": 2}) -> root."""

    def make(counts: dict[str, int], name: str = "pictures", size: tuple[int, int] = (24, 20)):
        root = tmp_path / name
        for number, (place, count) in enumerate(counts.items()):
            (root / place).mkdir(parents=True)
            for index in range(count):
                data = encoded(photo(*size, seed=100 * number + index), quality=90)
                (root / place / f"{index:03d}.jpg").write_bytes(data)
        return root

    return make
