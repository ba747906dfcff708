import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pictures import encoded, photo
from mambar.data.classification.folder import ImageFolder
from mambar.data.dataset import Sample
from mambar.data.keys import key
from mambar.data.loading.loaders import Batch, evaluation_batches, training_batches
from mambar.data.synthetic.shapes import Shapes
from mambar.data.transforms.classification import EvalTransform, Preprocessing, TrainTransform
from mambar.errors import DataError, InputError, MambarError

SETTING = Preprocessing(img_size=12)
TRAIN = TrainTransform(preprocessing=SETTING, auto_augment="three", color_jitter=0.3, random_erase_prob=0.3)
EVAL = EvalTransform(preprocessing=SETTING)
SHAPES = Shapes(img_size=16, num_images=53)


class Numbers:
    """A dataset whose image i is the number i; what index `hurt` does is told by `how`."""

    name = "numbers"
    classes = ("only",)

    def __init__(self, length, hurt=-1, how=None):
        self.length = length
        self.hurt = hurt
        self.how = how

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.hurt and self.how is not None:
            self.how()
        return Sample(torch.full((1, 1, 1), index % 256, dtype=torch.uint8), 0)

    def fingerprint(self):
        return "numbers"


def plain(image, key=None):
    return image.float()


def with_key(image, k):
    return torch.tensor([[[float(image), k % 2**20]]])


def same(left, right):
    assert (left.step, left.shard) == (right.step, right.shard)
    assert torch.equal(left.images, right.images)
    assert torch.equal(left.labels, right.labels) and torch.equal(left.indices, right.indices)


def train(**options):
    given = {"seed": 3, "epoch": 1, "batch_size": 10, **options}
    return list(training_batches(SHAPES, TRAIN, **given))


@pytest.mark.rel
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_no_bit(workers):
    alone, helped = train(shards=2, repeats=3), train(shards=2, repeats=3, num_workers=workers)
    assert len(alone) == len(helped) == 10
    for left, right in zip(alone, helped, strict=True):
        same(left, right)


@pytest.mark.rel
def test_the_number_of_processes_changes_no_bit():
    whole = {(batch.step, batch.shard): batch for batch in train(shards=5)}
    for ranks in ([[0, 1, 2, 3, 4]], [[0, 2, 4], [1, 3]], [[3], [0, 4], [2, 1]]):
        parts = [batch for mine in ranks for batch in train(shards=5, local_shards=mine)]
        assert len(parts) == len(whole) == 25
        for batch in parts:
            same(batch, whole[batch.step, batch.shard])


@pytest.mark.rel
def test_a_resumed_epoch_is_the_rest_of_the_epoch():
    whole = train(shards=2)
    for first in range(6):
        rest = train(shards=2, first_step=first, num_workers=first % 2)
        assert len(rest) == len(whole) - 2 * first
        for left, right in zip(rest, whole[2 * first :], strict=True):
            same(left, right)


@pytest.mark.rel
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_several_epochs_are_the_single_epochs_one_after_the_other(workers):
    options = {"shards": 2, "repeats": 3, "local_shards": [1]}
    single = [batch for epoch in (1, 2, 3) for batch in train(epoch=epoch, **options)][2:]
    together = train(epoch=1, first_step=2, num_epochs=3, num_workers=workers, **options)
    assert len(together) == len(single) == 13
    for left, right in zip(together, single, strict=True):
        same(left, right)


def test_pinned_batches_of_several_epochs_arrive_in_order_and_end_when_closed(monkeypatch):
    """The copy to pinned memory runs in a thread; without a GPU it is left out here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    pinned = []
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: pinned.append(batch) or batch)
    options = {"num_epochs": 2, "num_workers": 2, "pin_memory": True}
    for left, right in zip(train(**options), [*train(), *train(epoch=2)], strict=True):
        same(left, right)
    assert len(pinned) == 10
    batches = training_batches(SHAPES, TRAIN, seed=3, epoch=1, batch_size=10, **options)
    for _ in range(6):
        next(batches)
    # Between two epochs the processes of an evaluation start and end.
    assert len(list(evaluation_batches(SHAPES, EVAL, batch_size=10, num_workers=2))) == 6
    assert next(batches).step == 1
    batches.close()
    assert not multiprocessing.active_children()


@settings(max_examples=60)
@given(
    length=st.integers(1, 400),
    shards=st.integers(1, 5),
    each=st.integers(1, 9),
    repeats=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_cut_into_disjoint_parts(length, shards, each, repeats, epoch):
    size = shards * each
    options = {"seed": 0, "epoch": epoch, "batch_size": size, "shards": shards, "repeats": repeats}
    if length < size:
        with pytest.raises(InputError, match="batch_size="):
            training_batches(Numbers(length), with_key, **options)
        return
    batches = list(training_batches(Numbers(length), with_key, **options))
    assert [(b.step, b.shard) for b in batches] == [
        (t, s) for t in range(len(batches) // shards) for s in range(shards)
    ]
    assert all(len(batch) == each for batch in batches)
    # Index and key together are used once: no sample twice, no two copies with one augmentation.
    seen = torch.cat([b.images.flatten(1) for b in batches])
    indices = torch.cat([b.indices for b in batches])
    assert len({(int(i), float(k)) for i, k in zip(indices, seen[:, 1], strict=True)}) == len(indices)
    assert torch.bincount(indices).max() <= repeats


def test_the_key_of_a_sample_names_seed_epoch_index_and_copy():
    batches = training_batches(Numbers(300), with_key, seed=5, epoch=2, batch_size=30, repeats=3)
    pairs = {(int(i), int(row[0, 0, 1])) for b in batches for i, row in zip(b.indices, b.images, strict=True)}
    for index, drawn in pairs:
        assert drawn in {key(5, "augment", 2, index, copy) % 2**20 for copy in range(3)}


def test_copies_of_an_image_go_to_different_shards():
    batches = list(training_batches(Numbers(300), plain, seed=0, epoch=0, batch_size=30, shards=3, repeats=3))
    for batch in batches:
        assert len(set(batch.indices.tolist())) == len(batch)


@pytest.mark.rel
@settings(max_examples=100)
@given(length=st.integers(0, 200), size=st.integers(1, 40), world=st.integers(1, 7))
def test_evaluation_meets_every_sample_once(length, size, world):
    data = Numbers(length)
    ranks = [list(evaluation_batches(data, plain, batch_size=size, rank=r, world_size=world)) for r in range(world)]
    met = [index for batches in ranks for batch in batches for index in batch.indices.tolist()]
    assert sorted(met) == list(range(length))
    assert all(0 < len(batch) <= size for batches in ranks for batch in batches)
    counts = [len(batches) for batches in ranks]
    assert max(counts) - min(counts) <= 1
    # What is in a batch does not depend on the number of ranks, nor do the last bits of what a network makes of it.
    parts = {batch.step: batch.indices.tolist() for batches in ranks for batch in batches}
    alone = {b.step: b.indices.tolist() for b in evaluation_batches(data, plain, batch_size=size)}
    assert parts == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_does_not_depend_on_workers(workers):
    alone = list(evaluation_batches(SHAPES, EVAL, batch_size=8, rank=1, world_size=2))
    helped = list(evaluation_batches(SHAPES, EVAL, batch_size=8, rank=1, world_size=2, num_workers=workers))
    for left, right in zip(alone, helped, strict=True):
        same(left, right)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_of_evaluation_and_replaced_in_training(workers, make_folder, caplog):
    root = make_folder({"train/a": 6, "train/b": 6, "val/a": 4, "val/b": 5}, size=(16, 16))
    for place in ("train/a/002.jpg", "val/b/000.jpg", "val/b/004.jpg"):
        (root / place).write_bytes(encoded(photo(9, 9))[:50])
    val, training = ImageFolder(root, "val"), ImageFolder(root, "train")
    with caplog.at_level(logging.WARNING, "mambar.data"):
        met = [batch.indices for batch in evaluation_batches(val, EVAL, batch_size=2, num_workers=workers)]
        assert torch.cat(met).tolist() == [0, 1, 2, 3, 5, 6, 7]
        assert val.unreadable.indices.tolist() == [4, 8]
        batches = list(training_batches(training, TRAIN, seed=0, epoch=0, batch_size=12, num_workers=workers))
    assert sorted(batches[0].indices.tolist()) == list(range(12))
    assert training.unreadable.count == 1
    for number in range(6):
        (root / f"train/a/{number:03d}.jpg").write_bytes(b"")
        (root / f"train/b/{number:03d}.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(training_batches(training, TRAIN, seed=0, epoch=0, batch_size=12, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_global_generators_are_neither_read_nor_moved():
    def states():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        # beartype, under the shape-checking hook, draws from python's itself.
        python_state = None if os.environ.get("MAMBAR_SHAPES") else random.getstate()
        return python_state, numpy_state, torch.get_rng_state().tolist()

    before, first = states(), train(num_workers=1)
    assert states() == before
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    for left, right in zip(first, train(num_workers=1), strict=True):
        same(left, right)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def data_error():
    raise DataError("this and that; do so.")


def other_error():
    raise ZeroDivisionError("a fault of ours")


@pytest.mark.parametrize("how", [kill_self, leave])
def test_a_dead_worker_is_an_error_of_one_line(how):
    with pytest.raises(MambarError, match=r"data worker died .(signal 9|exit code 3)") as caught:
        list(training_batches(Numbers(40, 7, how), plain, seed=0, epoch=0, batch_size=4, num_workers=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_data_come_through_as_they_are(workers):
    with pytest.raises(DataError) as caught:
        list(training_batches(Numbers(40, 7, data_error), plain, seed=0, epoch=0, batch_size=4, num_workers=workers))
    assert str(caught.value) == "this and that; do so."
    with pytest.raises(ZeroDivisionError, match="a fault of ours") as caught:
        list(evaluation_batches(Numbers(40, 7, other_error), plain, batch_size=4, num_workers=workers))


def test_two_loaders_live_side_by_side():
    pair = [training_batches(Numbers(400), plain, seed=0, epoch=e, batch_size=4, num_workers=2) for e in (0, 1)]
    firsts = [next(batches) for batches in pair]
    assert [batch.step for batch in firsts] == [0, 0]
    pair[0].close()
    assert len(list(pair[1])) == 99


_ORPHANS = """
import os, signal, sys
from mambar.data import training_batches, evaluation_batches, Shapes
import multiprocessing
d = Shapes(img_size=16, num_images=4000)
a = training_batches(d, lambda i, k: i, seed=0, epoch=0, batch_size=4, num_workers=2)
b = evaluation_batches(d, lambda i: i, batch_size=4, num_workers=2)
next(a), next(b)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[1] == "killed": os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raises": raise RuntimeError
if sys.argv[1] == "terminated":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.rel
@pytest.mark.parametrize("how", ["ends", "raises", "killed", "terminated"])
def test_a_parent_that_ends_anyhow_leaves_no_worker(how):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _ORPHANS, how], capture_output=True, text=True, timeout=100, encoding="utf-8"
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 4, done.stderr
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)
    assert time.monotonic() - start < 90


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_stopping_early_leaves_no_process_behind():
    before = len(multiprocessing.active_children())
    batches = training_batches(Numbers(4000), plain, seed=0, epoch=0, batch_size=4, num_workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) >= before + 2
    batches.close()
    deadline = time.monotonic() + 10
    while len(multiprocessing.active_children()) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(multiprocessing.active_children()) == before


def test_workers_leave_signals_to_their_parent():
    batches = training_batches(Numbers(400), plain, seed=0, epoch=0, batch_size=4, num_workers=2)
    first = next(batches)
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(child.pid, number)
    assert first.step == 0 and len(list(batches)) == 99


@pytest.mark.slow
def test_everything_travels_to_spawned_workers(tmp_path):
    # What Windows and macOS do: nothing is inherited, all is pickled.
    code = (
        "import torch.multiprocessing as m\n"
        "from mambar.data import *\n"
        "if __name__ == '__main__':\n"
        "    m.set_start_method('spawn')\n"
        "    p = Preprocessing(img_size=12)\n"
        "    t = TrainTransform(preprocessing=p, auto_augment='three', color_jitter=0.3)\n"
        "    d = open_dataset('shapes', 'train', img_size=16, num_images=40)\n"
        "    sums = [[float(b.images.double().sum()) for b in\n"
        "             training_batches(d, t, seed=0, epoch=0, batch_size=8, num_workers=w)] for w in (0, 2)]\n"
        "    assert sums[0] == sums[1] and len(sums[0]) == 5\n"
        "    print('EQUAL')\n"
    )
    script = tmp_path / "spawned.py"
    script.write_text(code, "utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert "EQUAL" in done.stdout, done.stderr


def test_a_batch_moves_and_has_a_length():
    batch = train()[0]
    assert len(batch) == 10 and batch.images.dtype == torch.float32 and batch.labels.dtype == torch.int64
    same(batch.to("cpu"), batch)
    assert batch.to("meta").images.device.type == "meta"


def test_images_of_different_shapes_are_refused():
    data = Numbers(4)
    with pytest.raises(DataError, match="differ in shape"):
        list(evaluation_batches(data, lambda image: torch.zeros(1, 1, 1 + int(image)), batch_size=4))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shards": 3}, "batch_size=10 cannot be divided into shards=3"),
        ({"shards": 0}, "shards=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 54}, "batch_size=54 exceeds the 53 images"),
        ({"shards": 2, "local_shards": [2]}, "local_shards="),
        ({"first_step": 6}, "first_step=6"),
        ({"first_step": -1}, "first_step=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_wrong_settings_are_refused_at_the_call(options, match):
    with pytest.raises(InputError, match=match):
        training_batches(SHAPES, TRAIN, **{"seed": 0, "epoch": 0, "batch_size": 10, **options})


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}, {"num_workers": -1}]
)
def test_wrong_evaluation_settings_are_refused_at_the_call(options):
    with pytest.raises(InputError):
        evaluation_batches(SHAPES, EVAL, **{"batch_size": 4, **options})
