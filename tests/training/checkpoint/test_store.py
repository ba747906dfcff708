import json
import logging
import random
import re
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from mambar.errors import CheckpointError, DiskError, NonFiniteError
from mambar.training.checkpoint import checksummed_json
from mambar.training.checkpoint.store import CheckpointStore
from training import saving

COUNTS = [pytest.param(6, id="few"), pytest.param(200, marks=pytest.mark.soak, id="many")]


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.create()
    return store


def save(store, *steps):
    for step in steps:
        store.save(step, saving.tensors_of(step), {"position": step})


def test_a_saved_state_is_loaded_bit_for_bit(store):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, dtype=torch.float64),
        "c": torch.randn(2, 2).to(torch.bfloat16),
        "d": torch.tensor(3, dtype=torch.int64),
        "e": torch.zeros(0, 4),
        "f": torch.randn(6, 4).t(),
        "g": torch.tensor([True, False]),
        "h": torch.randn(3).half(),
    }
    path = store.save(12, tensors, {"x": 0.1 + 0.2, "y": None, "z": [1, "a"]})
    checkpoint = store.load()
    assert path.name == "step-00000012" and checkpoint.step == 12
    assert checkpoint.scalars == {"x": 0.1 + 0.2, "y": None, "z": [1, "a"]}
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)
    # The file is an ordinary safetensors file.
    assert set(load_file(path / "state.safetensors")) == set(tensors)


def test_only_the_newest_are_kept_and_last_names_the_newest(store):
    save(store, 1, 2, 3, 4)
    assert sorted(path.name for path in store.directory.glob("step-*")) == ["step-00000003", "step-00000004"]
    assert json.loads((store.directory / "last.json").read_text("utf-8"))["name"] == "step-00000004"
    assert store.load().step == 4


def test_no_checkpoint_yet_is_none(store):
    assert store.load() is None
    assert store.load_best() is None


def test_the_same_state_is_not_written_twice_and_another_one_never_over_it(store):
    path = store.save(5, saving.tensors_of(5), {"position": 5})
    before = (path / "state.json").stat().st_mtime_ns
    assert store.save(5, saving.tensors_of(5), {"position": 5}) == path
    assert (path / "state.json").stat().st_mtime_ns == before
    other = store.save(5, saving.tensors_of(6), {"position": 6})
    assert other.name == "step-00000005-1"
    assert store.load().scalars == {"position": 6}
    assert store.read(path).scalars == {"position": 5}


def test_a_newer_format_is_refused_and_no_older_checkpoint_is_loaded_instead(store):
    save(store, 1, 2)
    state = store.directory / "step-00000002" / "state.json"
    body = checksummed_json.loads(state.read_bytes(), source=state, newest_format=2)
    state.write_bytes(checksummed_json.dumps({**body, "format_version": 3}))
    (store.directory / "last.json").unlink()
    with pytest.raises(CheckpointError, match="format_version 3"):
        store.load()


def test_file_modes_follow_the_umask(store):
    save(store, 1)
    assert (store.directory / "last.json").stat().st_mode & 0o777 == 0o644


def test_temporaries_of_ended_processes_are_removed_and_of_running_ones_kept(store):
    (store.directory / "step-00000009.tmp.1").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (store.directory / f"last.json.tmp.{dead.pid}").write_text("{", "utf-8")
    (store.directory / f"step-00000009.tmp.{dead.pid}").mkdir()
    (store.directory / f"step-00000009.tmp.{dead.pid}" / "state.json").write_text("{", "utf-8")
    store.create()
    assert saving.leftovers(store.directory) == ["step-00000009.tmp.1"]


@pytest.mark.rel
def test_p11_a_state_that_is_not_finite_is_never_written(store):
    save(store, 1)
    with pytest.raises(NonFiniteError, match=r"model\.a.*step 2"):
        store.save(2, {"model.a": torch.tensor([1.0, float("nan")])}, {})
    assert [path.name for path in store.directory.glob("step-*")] == ["step-00000001"]


@pytest.mark.rel
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["step", "best"])
def test_p1_kills_at_random_times_lose_no_acknowledged_save(tmp_path, count, kind, record_property):
    saver = saving.good_saver if kind == "step" else saving.best_saver
    loader = saving.good_loader if kind == "step" else saving.best_loader
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    draw = random.Random(5)
    first = 0
    for _ in range(count):
        acknowledged = saving.kill_while_saving(saver, directory, after=draw.uniform(0.003, 0.12), first=first)
        checkpoint = loader(directory)
        found = -1 if checkpoint is None else checkpoint.step
        assert found >= acknowledged
        assert checkpoint is None or saving.is_right(checkpoint)
        assert not saving.leftovers(directory)
        first = found + 1
    record_property("kills", count)
    record_property("steps saved", first)
    assert first > count / 3, "the kills came before anything was saved: the harness shows nothing"


@pytest.mark.rel
def test_p1_the_harness_catches_a_saver_onto_the_only_file(tmp_path, record_property):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    draw = random.Random(5)
    lost = 0
    for _ in range(12):
        saving.kill_while_saving(saving.bad_saver, directory, after=draw.uniform(0.03, 0.12), first=0)
        try:
            torch.load(directory / "checkpoint.pt", weights_only=True)
        except Exception:
            lost += 1
    record_property("lost of 12", lost)
    assert lost > 0


INJECTIONS = ["signal=KILL", "error=EIO", "error=ENOSPC"]


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("inject", INJECTIONS)
@pytest.mark.parametrize("kind", ["step", "best"])
def test_p1_a_fault_at_any_system_call_of_a_save_loses_nothing(tmp_path, need_program, inject, kind, record_property):
    """Every write, fsync, rename, unlink, mkdir and rmdir of a save that also prunes."""
    need_program("strace")
    saver = saving.good_saver if kind == "step" else saving.best_saver
    loader = saving.good_loader if kind == "step" else saving.best_loader
    template, directory, log = tmp_path / "template", tmp_path / "checkpoints", tmp_path / "log"
    template.mkdir()
    for step in (1, 2):
        saver(template, step)
    saving.fresh(directory, template)
    assert saving.save_under_strace(saver, directory, 3, log, None) == {"exit": 0, "text": ""}
    calls = saving.calls_in(log, directory)
    assert {"write", "fsync", "rename", "unlinkat", "rmdir"} <= {name for name, _ in calls}, calls
    points = [(name, number) for name in saving.CALLS for number in range(1, _count(log, name) + 1)]
    assert len(points) >= 15
    injected = failed = 0
    for name, number in points:
        saving.fresh(directory, template)
        answer = saving.save_under_strace(saver, directory, 3, log, f"inject={name}:{inject}:when={number}")
        text = log.read_text(errors="replace", encoding="utf-8")
        injected += answer is None if "KILL" in inject else "(INJECTED)" in text
        if "KILL" not in inject:
            # The failing write may be that of the result; then the save has finished.
            assert answer is None or answer["exit"] in (0, 3), (name, number, answer)
            if answer is not None and answer["exit"] == 3:
                failed += 1
                assert str(directory) in answer["text"] and "bytes" in answer["text"]
                assert not saving.leftovers(directory), (name, number)
        checkpoint = loader(directory)
        assert checkpoint is not None, (name, number)
        assert checkpoint.step in (2, 3) and saving.is_right(checkpoint), (name, number)
        if answer is not None and answer["exit"] == 0:
            assert checkpoint.step == 3, (name, number)
        assert not saving.leftovers(directory)
    record_property("faults", injected)
    record_property("saves that failed", failed)
    assert injected == len(points), f"{injected} of {len(points)} faults happened"
    assert "KILL" in inject or failed >= 5


def _count(log, name):
    return len(re.findall(rf"^\d+\s+{name}\(", log.read_text(errors="replace", encoding="utf-8"), re.M))


@pytest.mark.rel
def test_p1_the_order_is_fsync_file_rename_fsync_directory(tmp_path, need_program):
    need_program("strace")
    directory, log = tmp_path / "checkpoints", tmp_path / "log"
    directory.mkdir()
    saving.good_saver(directory, 1)
    saving.save_under_strace(saving.good_saver, directory, 2, log, None)
    calls = saving.calls_in(log, directory)
    for published in ("step-00000002", "last.json"):
        written = [i for i, (name, line) in enumerate(calls) if name == "fsync" and f"{published}.tmp." in line]
        renamed = [i for i, (name, line) in enumerate(calls) if name == "rename" and f'/{published}"' in line]
        synced = [i for i, (name, line) in enumerate(calls) if name == "fsync" and f"<{directory}>" in line]
        assert written and len(renamed) == 1
        assert max(written) < renamed[0] < max(i for i in synced)
        assert any(i > renamed[0] for i in synced)
    removed = [i for i, (name, line) in enumerate(calls) if name in ("unlinkat", "rmdir")]
    pointed = next(i for i, (name, line) in enumerate(calls) if name == "rename" and '/last.json"' in line)
    assert all(i > pointed for i in removed)


@pytest.mark.rel
def test_p2_a_full_disk_leaves_the_checkpoint_before_it(small_disk):
    store = CheckpointStore(small_disk / "checkpoints", keep=2)
    store.create()
    for step in (1, 2):
        store.save(step, saving.tensors_of(step, 300_000), {"position": step})
    with pytest.raises(DiskError, match=r"step-00000003.*1200\d\d\d bytes.*No space left") as caught:
        store.save(3, saving.tensors_of(3, 300_000), {"position": 3})
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert not saving.leftovers(small_disk)
    assert store.load().step == 2 and saving.is_right(store.load())
    # A smaller state can still be saved.
    store.save(4, saving.tensors_of(4, 10), {"position": 4})
    assert store.load().step == 4


@pytest.mark.rel
def test_p2_the_harness_catches_a_saver_onto_the_only_file(small_disk):
    file = small_disk / "checkpoint.pt"
    saving.bad_saver(small_disk, 1)
    assert torch.load(file, weights_only=True)["step"] == 1
    (small_disk / "other").write_bytes(bytes(1_500_000))
    with pytest.raises((RuntimeError, OSError)):
        torch.save({"step": 2, **saving.tensors_of(2, 600_000)}, file)
    with pytest.raises((RuntimeError, EOFError, OSError)):
        torch.load(file, weights_only=True)


@pytest.mark.rel
def test_p2_a_directory_that_cannot_be_written_is_one_line(tmp_path, need_root):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.create()
    save(store, 1)
    subprocess.run(["mount", "--bind", str(store.directory), str(store.directory)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(store.directory)], check=True)
        with pytest.raises(DiskError, match="Read-only file system"):
            save(store, 2)
        assert store.load().step == 1
    finally:
        subprocess.run(["umount", str(store.directory)], check=True)


@pytest.mark.rel
def test_p2_a_file_size_limit_is_one_line(tmp_path):
    saving.good_saver(tmp_path, 1)
    here, there = saving.CONTEXT.Pipe()
    process = saving.CONTEXT.Process(target=saving.limited, args=(tmp_path, there))
    process.start()
    assert "File too large" in here.recv()
    process.join()
    assert saving.good_loader(tmp_path).step == 1
    assert not saving.leftovers(tmp_path)


DAMAGES = [pytest.param(60, id="few"), pytest.param(2000, marks=pytest.mark.soak, id="many")]


@pytest.mark.rel
@pytest.mark.parametrize("count", DAMAGES)
def test_p3_every_damage_is_refused_and_the_checkpoint_before_it_taken(tmp_path, count, caplog, record_property):
    template, directory = tmp_path / "template", tmp_path / "checkpoints"
    template.mkdir()
    for step in (10, 20):
        saving.good_saver(template, step)
    draw = random.Random(11)
    files = ["step-00000020/state.safetensors", "step-00000020/state.json", "last.json"]
    shutil.copytree(template, directory)
    for number in range(count):
        name = files[number % 3]
        kind = draw.choice(["flip", "flip", "truncate", "swap"]) if "/" in name else draw.choice(["flip", "truncate"])
        target = directory / name
        good = target.read_bytes()
        damaged = _damage(good, kind, draw, (template / name.replace("20", "10")))
        target.write_bytes(damaged)
        caplog.clear()
        checkpoint = CheckpointStore(directory).load()
        assert saving.is_right(checkpoint)
        assert checkpoint.step == (20 if name == "last.json" else 10)
        assert "expected" in caplog.text or "without a valid checksum" in caplog.text or "holds step" in caplog.text
        assert name.split("/")[-1] in caplog.text or "step-00000020" in caplog.text
        # Nothing is deleted; the damaged checkpoint is kept.
        assert target.read_bytes() == damaged
        target.write_bytes(good)
    record_property("damages refused", count)


def _damage(good, kind, draw, other):
    if kind == "flip":
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        return good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :]
    return good[: draw.randrange(len(good))] if kind == "truncate" else other.read_bytes()


@pytest.mark.rel
def test_p3_the_harness_would_notice_a_loader_without_checksums(tmp_path, record_property):
    saving.good_saver(tmp_path, 20)
    file = tmp_path / "step-00000020" / "state.safetensors"
    good, draw, accepted = file.read_bytes(), random.Random(3), 0
    for _ in range(40):
        file.write_bytes(_damage(good, "flip", draw, None))
        try:
            loaded = load_file(file)
            expected = saving.tensors_of(20)
            accepted += any(not torch.equal(loaded[name], expected[name]) for name in expected if name in loaded)
        except Exception:
            continue
    record_property("changed values accepted of 40", accepted)
    assert accepted > 20


@pytest.mark.rel
def test_p3_swapped_checkpoints_are_refused(tmp_path, caplog):
    for step in (10, 20):
        saving.good_saver(tmp_path, step)
    (tmp_path / "step-00000010").rename(tmp_path / "x")
    (tmp_path / "step-00000020").rename(tmp_path / "step-00000010")
    (tmp_path / "x").rename(tmp_path / "step-00000020")
    with pytest.raises(CheckpointError, match="No intact checkpoint is left"):
        CheckpointStore(tmp_path).load()


@pytest.mark.rel
def test_p3_a_run_that_goes_on_keeps_the_damaged_one_under_another_name(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for step in (10, 20):
        saving.good_saver(tmp_path, step)
    file = tmp_path / "step-00000020" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    store = CheckpointStore(tmp_path, keep=2)
    assert store.load(repair=True).step == 10
    assert re.search(r"sha256 expected [0-9a-f]{64}, found [0-9a-f]{64}", caplog.text)
    for step in (20, 30, 40):
        saving.good_saver(tmp_path, step)
    assert (tmp_path / "step-00000020.damaged-1" / "state.safetensors").read_bytes()[-1:] == b"x"
