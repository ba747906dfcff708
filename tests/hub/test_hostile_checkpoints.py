"""P13: no checkpoint runs code, kills the process or fills the memory; all that is wrong is one `CheckpointError`."""

import argparse
import builtins
import functools
import importlib
import io
import json
import operator
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

import hostile_loading
import mambar
from mambar.errors import CheckpointError
from mambar.hub import to_official
from mambar.hub.config_file import CONFIG, json_bytes, with_checksum
from mambar.hub.files import WEIGHTS
from mambar.hub.safetensors_file import MAX_HEADER_BYTES, read_safetensors
from mambar.models import VisionMamba, VisionMambaConfig

pytestmark = pytest.mark.rel

SMALL = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_registers=2, num_classes=3, d_state=4)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return to_official(VisionMamba(SMALL).state_dict(), source="mamba-reg", config=SMALL)


@pytest.fixture(scope="module")
def released(state, tmp_path_factory):
    """A small checkpoint in the released layout, as .pth and as .safetensors."""
    directory = tmp_path_factory.mktemp("released")
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, directory / "small.pth")
    safetensors.torch.save_file(state, directory / "small.safetensors")
    return directory


@pytest.fixture
def run_directory(tmp_path):
    torch.manual_seed(0)
    mambar.save_model(tmp_path / "run", VisionMamba(SMALL), classes=["a", "b", "c"])
    return tmp_path / "run"


def refused(path) -> str:
    """The line with which a file is refused; any other exception, or none, fails the test."""
    kind, message = hostile_loading.outcome(path)
    assert kind == "refused", message or kind
    return message


def in_small_memory(free: int, *arguments) -> dict:
    """What hostile_loading.py reports from a process that may take `free` bytes more than it has."""
    command = [sys.executable, hostile_loading.__file__, str(free), *map(str, arguments)]
    # The limit counts addresses, and each thread's own arena of glibc's malloc reserves 64 MB of them unused.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment, encoding="utf-8")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
    return json.loads(done.stdout)


# Pickles that run code


class Call:
    """Calls a function with arguments when it is unpickled; may itself stand for the function it gives."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts

    def __call__(self):
        raise AssertionError("only its pickle is called")


class State:
    """A hostile value in the state of a class that is admitted."""

    def __init__(self, inner):
        self.inner = inner

    def __reduce__(self):
        return argparse.Namespace, (), {"inner": self.inner}


GADGETS = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "subprocess": lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
    "eval": lambda marker: Call(builtins.eval, f"open({str(marker)!r}, 'w').close()"),
    "exec": lambda marker: Call(builtins.exec, f"open({str(marker)!r}, 'w').close()"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "os.mkdir": lambda marker: Call(os.mkdir, str(marker)),
    "shutil.copy": lambda marker: Call(shutil.copy, __file__, str(marker)),
    "method": lambda marker: Call(pathlib.Path.touch, pathlib.Path(str(marker))),
    "partial": lambda marker: Call(functools.partial(os.mkdir, str(marker))),
    "methodcaller": lambda marker: Call(operator.methodcaller("touch"), pathlib.Path(str(marker))),
    "pickle in pickle": lambda marker: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(marker)))),
    "getattr": lambda marker: Call(Call(getattr, Call(importlib.import_module, "os"), "mkdir"), str(marker)),
    "state": lambda marker: State(Call(os.mkdir, str(marker))),
}


@pytest.mark.parametrize("form", ["top", "nested", "legacy"])
@pytest.mark.parametrize("gadget", GADGETS)
def test_no_pickle_runs_code(gadget, form, state, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    payload = GADGETS[gadget](marker)
    content = payload if form == "top" else {"model": state, "epoch": payload}
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    refused(path)
    assert not marker.exists()
    # The negative control: the same file runs code where the safe reader is not used.
    torch.load(path, weights_only=False)
    assert marker.exists()


# Files that claim more than they hold


def zipped(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as container:
        for name, content in records.items():
            container.writestr(name, content)
    return path


def records_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as container:
        return {name: container.read(name) for name in container.namelist()}


def bombs(released, state, directory) -> dict[str, tuple[pathlib.Path, str]]:
    """Name → (file, words of the refusal); the small ones would take gigabytes if they were believed."""
    found = {}

    def saved(name, content, words):
        path = directory / f"{name}.pth"
        torch.save(content, path)
        found[name] = path, words

    records = records_of(released / "small.pth")
    deflated = zipped(directory / "deflated.pth", {**records, "small/data/0": bytes(500_000_000)}, zipfile.ZIP_DEFLATED)
    found["deflated"] = deflated, "compressed records"
    found["many records"] = (
        zipped(directory / "many.pth", {**records, **{f"small/{index}": b"" for index in range(40_000)}}),
        "directory of records",
    )
    lying = bytearray((released / "small.pth").read_bytes())
    lying[len(lying) - 10 : len(lying) - 6] = struct.pack("<L", 1 << 31)
    (directory / "lying.pth").write_bytes(lying)
    found["lying directory"] = directory / "lying.pth", "directory of records"
    overlapping = zipped(directory / "overlapping.pth", {"a/data.pkl": bytes(1000)})
    content = bytearray(overlapping.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 28] = struct.pack("<LL", 1 << 30, 1 << 30)
    overlapping.write_bytes(content)
    found["overlong record"] = overlapping, "more bytes than the file has"

    saved("bytearray", {"model": state, "x": Call(bytearray, 10**11)}, "damaged, or holds more")
    saved("storage", {"model": state, "x": Call(torch.UntypedStorage, 10**11)}, "damaged, or holds more")
    saved("expanded", {**state, "pos_embed": torch.zeros(1).expand(1, 10**6, 10**6)}, "claim")
    saved("expanded a little", {**state, "pos_embed": torch.zeros(1).expand(1, 4, 8)}, "claim")
    saved("meta", {**state, "pos_embed": torch.empty(1, 10**6, 10**6, device="meta")}, "is not a dense CPU tensor")
    sparse = torch.sparse_coo_tensor(
        torch.zeros(3, 1, dtype=torch.long), torch.ones(1), (1, 10**6, 10**6), check_invariants=True
    )
    saved("sparse", {**state, "pos_embed": sparse}, "is not a dense CPU tensor")
    saved("layer a million", {**state, "layers.1000000.norm.weight": torch.ones(8)}, "unexpected")
    saved("layer nine thousand", {**state, "layers.9000.norm.weight": torch.ones(8)}, "layer 9000")
    wide = {**state, "pos_embed": torch.zeros(1, 1, 10**5), "layers.0.mixer.in_proj.weight": torch.zeros(2 * 10**5, 1)}
    saved("a wide model", wide, "has shape")
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    pickled = io.BytesIO()
    pickled.write(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    found["deep"] = zipped(directory / "deep.pth", {**records, "small/data.pkl": pickled.getvalue()}), ""

    def header(name, text, words, size=None):
        path = directory / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)
        found[name] = path, words

    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header(
        "a million keys", ("{" + ",".join(f'"{k}":{empty}' for k in range(10**6)) + "}").encode(), "its header claims"
    )
    header("a long header", b"{}", "its header claims", size=1 << 62)
    header("a deep header", b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "not a JSON object")
    header("twice", f'{{"a":{empty},"a":{empty}}}'.encode(), "given twice")
    huge = b'{"pos_embed":{"dtype":"F32","shape":[1,1000000,1000000],"data_offsets":[0,4000000000000]}}'
    header("cut off", huge, "truncated")
    # Read, hashed and looked through within its own size and 64 MB, before it is refused for its keys.
    large = directory / "large.safetensors"
    safetensors.torch.save_file({name: torch.zeros(10_000_000) for name in "ab"}, large)
    found["large"] = large, "missing cls_token"
    header("overflow", huge.replace(b"1000000,1000000", b"4294967296,4294967296"), "is too large")
    return found


@pytest.mark.slow
def test_bombs_are_refused_in_little_memory(released, state, tmp_path):
    files = bombs(released, state, tmp_path)
    largest = max(path.stat().st_size for path, _ in files.values())
    report = in_small_memory(
        largest + 64 * MEGABYTE, "files", released / "small.pth", *(path for path, _ in files.values())
    )
    assert report["unexpected"] == []
    for name, (path, words) in files.items():
        kind, message = report["messages"][str(path)]
        assert kind == "refused" and words in message, (name, kind, message)
    assert 0 < report["growth"] <= largest + 64 * MEGABYTE


def test_the_memory_limit_bites(tmp_path):
    """The negative control: a reader that believes a 20 kB file of the format takes 100 MB, and the limit sees it."""
    probe = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(hostile_loading.__file__).parent)!r})\n"
        "import hostile_loading; hostile_loading.limit_memory(64 << 20)\n"
        "try: bytearray(100 << 20)\nexcept MemoryError: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60).returncode == 7


# Damage


@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), pytest.param(1000, 10_000, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])]
)
@pytest.mark.slow
def test_mutants_raise_one_error(released, first, count):
    free = 128 * MEGABYTE
    files = [released / "small.pth", released / "small.safetensors"]
    report = in_small_memory(free, "mutants", first, count, *files)
    assert report["unexpected"] == []
    assert sum(report["counted"].values()) == 2 * count and report["counted"]["refused"] > count / 2
    assert report["growth"] <= free


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_no_changed_weights_are_accepted_with_a_manifest(run_directory, count):
    data = (run_directory / WEIGHTS).read_bytes()
    for seed in range(count):
        changed = hostile_loading.mutate(data, seed)
        (run_directory / WEIGHTS).write_bytes(changed)
        if changed != data:
            assert "sha256" in refused(run_directory)


@pytest.mark.parametrize("format_version", [1, 2])
@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.soak)])
def test_mutants_of_the_description_raise_one_error(run_directory, count, format_version):
    content = json.loads((run_directory / CONFIG).read_text("utf-8"))
    if format_version == 1:
        # Without a checksum, so that mutants reach the checks behind it.
        content["mambar"] |= {"format_version": 1}
        del content["mambar"]["sha256"]
    data = json_bytes(content)
    for seed in range(count):
        (run_directory / CONFIG).write_bytes(hostile_loading.mutate(data, seed))
        kind, message = hostile_loading.outcome(run_directory)
        assert kind != "unexpected", (seed, message)


def test_our_reader_takes_nothing_the_library_refuses(released, tmp_path):
    data, path = (released / "small.safetensors").read_bytes(), tmp_path / "mutant.safetensors"
    same = 0
    for seed in range(400):
        path.write_bytes(hostile_loading.mutate(data, seed))
        try:
            ours = read_safetensors(path)
        except CheckpointError:
            continue
        theirs = safetensors.torch.load(path.read_bytes())
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))
        same += 1
    assert same > 20


def test_our_reader_gives_what_was_saved(tmp_path):
    kinds = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.zeros(0, 3)}
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    # Bytes that do not lie at multiples of the type's size, which another writer may leave.
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\7" + struct.pack("<f", 1.5))
    assert read_safetensors(path)["b"].item() == 1.5
    assert MAX_HEADER_BYTES < 1 << 23


@pytest.mark.parametrize("shape", [[0, 1 << 62, 1 << 62], [1 << 62, 0, 4], [0, (1 << 63) - 1]], ids=str)
def test_shapes_that_torch_cannot_hold_are_refused(run_directory, tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "shape.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "too large" in refused(path)


# What is wrong is named


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_f.weight": torch.full((8,), float("nan"))}, "norm_f.weight holds NaN or Inf"),
        ({"head.bias": torch.tensor([0.0, float("inf"), 0.0])}, "head.bias holds NaN or Inf"),
        ({"norm_f.weight": torch.ones(9)}, "norm_f.weight has shape (9,)"),
        ({"norm_f.weight": torch.ones(8, dtype=torch.int64)}, "norm_f.weight has dtype torch.int64"),
        ({"norm_f.weight": torch.ones(())}, "norm_f.weight has shape ()"),
        ({"pos_embed": torch.zeros(0)}, "is not a valid model configuration"),
        ({"pos_embed": torch.zeros(1, 4, 0)}, "is not a valid model configuration"),
        ({"pos_embed": torch.zeros(1, 5, 8)}, "no square grid"),
        ({"line\nfeed": torch.zeros(1)}, "line"),
        ({"\x1b[2Jclear": torch.zeros(1)}, "clear"),
        ({"x" * 10_000: torch.zeros(1)}, "xxx"),
    ],
    ids=str,
)
def test_wrong_tensors_are_named(state, tmp_path, suffix, change, words):
    path = tmp_path / f"wrong{suffix}"
    changed = {**state, **change}
    torch.save(changed, path) if suffix == ".pth" else safetensors.torch.save_file(changed, path)
    assert words in refused(path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {"model": {}}, {"model": {"a": 1}}, {1: torch.zeros(1), "b": 2}, OrderedDict(a=[]), "text", 7],
)
def test_pickles_of_other_things_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    refused(tmp_path / "other.pth")


HUGE = 10**400
COUNTS = ("embed_dim", "depth", "img_size", "d_state", "num_classes", "num_registers")
NO_COUNT = (10**9, HUGE, -1, 0, 2.5, "8", None, [], {}, True)
NO_RATE = (float("nan"), float("inf"), "0", None, 1, -1, HUGE)
NO_KEY = ("", "x" * 1000, None, 3, ["registers"])
NO_PREPROCESSING = (None, 3, [], {}, {"img_size": 10**9}, {"img_size": "x"}, {"mean": []})
DESCRIPTIONS = [
    *({"config": {field: value}} for field in COUNTS for value in NO_COUNT),
    *({"config": {field: value}} for field in ("drop_path_rate", "norm_eps", "drop_rate") for value in NO_RATE),
    *({"config": {field: value}} for field in ("head", "placement") for value in NO_KEY),
    {"config": {"unknown": 1}},
    {"config": {"img_size": [16, 16, 16]}},
    {"config": {"img_size": [10**6, 10**6]}},
    *({"preprocessing": value} for value in NO_PREPROCESSING),
    *({"preprocessing": {"std": value}} for value in ([0, 0, 0], [float("nan")] * 3, "abc", None, [1])),
    *({"classes": value} for value in ("abc", 3, {"a": 1}, ["a", "b"], ["a", "b", 3], [["a"], "b", "c"])),
    *({"weights": {"file": value}} for value in ("../x", "/etc/passwd", "a\0b", "", ".", "x" * 5000, 3, None, ["a"])),
    *({"weights": {"sha256": value}} for value in ("", "0" * 64, 3, ["a"])),
    *({"format_version": value} for value in (0.5, "1", None, 99, HUGE, [])),
]


@pytest.mark.parametrize("change", DESCRIPTIONS, ids=lambda change: repr(change)[:60])
def test_nonsense_in_a_description_is_one_line(run_directory, change):
    content = json.loads((run_directory / CONFIG).read_text("utf-8"))
    ours = content["mambar"]
    for part, fields in change.items():
        ours[part] = {**ours[part], **fields} if isinstance(fields, dict) and fields and part != "classes" else fields
    (run_directory / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    kind, message = hostile_loading.outcome(run_directory)
    assert kind != "unexpected", message


@pytest.mark.parametrize("fields", [{"img_size": 10**9}, {"crop_pct": 1e-9}], ids=str)
def test_a_description_that_would_blow_up_every_image_is_refused(run_directory, fields):
    content = json.loads((run_directory / CONFIG).read_text("utf-8"))
    content["mambar"]["preprocessing"] |= fields
    (run_directory / CONFIG).write_text(json.dumps(with_checksum(content)), "utf-8")
    assert "resizes above" in refused(run_directory)


def test_a_huge_description_is_not_read(run_directory):
    (run_directory / CONFIG).write_bytes(b"[" * 20_000_000)
    assert "a configuration is smaller" in refused(run_directory)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_file_is_refused(run_directory, name):
    (run_directory / name).unlink()
    assert name in refused(run_directory)
    os.mkfifo(run_directory / name)
    refused(run_directory)
