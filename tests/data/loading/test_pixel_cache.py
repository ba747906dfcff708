import pickle

import torch
import torch.multiprocessing

from mambar.data.loading import pixel_cache
from mambar.data.loading.pixel_cache import PixelCache


def pixels(value):
    return torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5) + value


def test_what_was_put_is_there_and_nothing_else():
    memory = PixelCache(6, (3, 4, 5))
    assert all(memory.get(index) is None for index in range(6))
    memory.put(2, pixels(7))
    assert torch.equal(memory.get(2), pixels(7))
    assert memory.get(1) is None and memory.get(3) is None


def test_black_images_are_kept_too():
    memory = PixelCache(1, (3, 4, 5))
    memory.put(0, torch.zeros(3, 4, 5, dtype=torch.uint8))
    assert torch.equal(memory.get(0), torch.zeros(3, 4, 5, dtype=torch.uint8))


def test_an_image_half_written_is_none():
    memory = PixelCache(2, (3, 4, 5))
    memory.put(0, pixels(0))
    memory.get(0)[1, 2, 3] += 1
    assert memory.get(0) is None
    memory.put(0, pixels(1))
    assert torch.equal(memory.get(0), pixels(1))


def test_other_shapes_and_sets_too_large_are_not_kept(monkeypatch):
    memory = PixelCache(1, (3, 4, 5))
    memory.put(0, torch.ones(3, 5, 4, dtype=torch.uint8))
    assert memory.get(0) is None
    monkeypatch.setattr(pixel_cache, "MAX_BYTES", 59)
    memory = PixelCache(1, (3, 4, 5))
    memory.put(0, pixels(0))
    assert memory.get(0) is None


def test_forked_processes_share_it_and_pickled_ones_start_empty():
    memory = PixelCache(3, (3, 4, 5))
    process = torch.multiprocessing.get_context("fork").Process(target=memory.put, args=(1, pixels(9)))
    process.start()
    process.join()
    assert torch.equal(memory.get(1), pixels(9))
    copy = pickle.loads(pickle.dumps(memory))
    assert copy.get(1) is None
    copy.put(1, pixels(3))
    assert torch.equal(memory.get(1), pixels(9))
