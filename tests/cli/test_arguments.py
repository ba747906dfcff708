"""NAME=VALUE arguments: typed, checked, with the nearest right name."""

from pathlib import Path

import pytest

from mambar.cli import arguments
from mambar.device import choose_device
from mambar.errors import InputError


def test_run_options_and_fields():
    options = arguments.parse(["data=/d", "seed=3", "workers=0", "device=cpu", "out=x/y", "epochs=2", "a=b=c"])
    assert (options.data, options.seed, options.workers, options.device) == ("/d", 3, 0, "cpu")
    assert options.out == Path("x/y")
    assert options.assignments == ["epochs=2", "a=b=c"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "is not NAME=VALUE"),
        ("=3", "is not NAME=VALUE"),
        ("seed=two", "seed='two' must be a whole number"),
        ("workers=-1", "workers=-1 must be at least 0"),
        ("device=gpu", "choose one of auto, cpu, cuda, mps"),
        ("batchsize=2", "did you mean 'batch_size'"),
    ],
)
def test_bad_ones(assignment, message):
    with pytest.raises(InputError, match=message):
        arguments.parse([assignment], allowed=("seed", "workers", "device", "batch_size"))


def test_sizes_and_truths():
    assert arguments.img_size("224") == 224
    assert arguments.img_size("224x384") == (224, 384)
    assert arguments.truth("pretrained", "Yes") is True
    for bad in ("0", "2x", "1x2x3", "wide"):
        with pytest.raises(InputError):
            arguments.img_size(bad)
    with pytest.raises(InputError, match="must be true or false"):
        arguments.truth("pretrained", "maybe")


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="PyTorch sees no GPU here"):
        choose_device("cuda")


def test_options_of_the_data_are_taken_apart():
    others, of_data = arguments.take_data_options(["seed=1", "data_options.canvas=64", "data_options.area=[0.1, 0.2]"])
    assert others == ["seed=1"] and of_data == {"canvas": 64, "area": (0.1, 0.2)}
    assert arguments.take_data_options(None) == ([], {})
    assert arguments.take_data_options(["data_options.canvas"]) == (["data_options.canvas"], {})
