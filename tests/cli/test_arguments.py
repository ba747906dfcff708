"""Options of commands, field=value arguments, and the forms of version 0.1."""

import logging
from pathlib import Path

import pytest
import typer

from mambar.cli import arguments
from mambar.errors import InputError

OPTIONS = {"out": False, "num-workers": False, "img-size": False, "pretrained": True}


def test_named_values():
    assert arguments.named_values(["data=/d", "epochs=2", "a=b=c"]) == {"data": "/d", "epochs": "2", "a": "b=c"}
    assert arguments.named_values(None) == {}


@pytest.mark.parametrize("assignment", ["seed", "=3", "data="])
def test_bad_assignments_are_refused(assignment):
    with pytest.raises(InputError, match=r"is not NAME=VALUE|data= is empty"):
        arguments.named_values([assignment])


def test_options_of_a_dataset():
    given = ["data_options.canvas=64", "data_options.area=[0.1, 0.2]"]
    assert arguments.data_options(given) == {"canvas": 64, "area": (0.1, 0.2)}
    assert arguments.data_options(None) == {}
    with pytest.raises(InputError, match=r"write data_options\.NAME=VALUE"):
        arguments.data_options(["seed=1"])


def test_lists_of_numbers():
    assert arguments.numbers("--layers", "7,23", int) == (7, 23)
    with pytest.raises(InputError, match="--scales 1,x must be numbers"):
        arguments.numbers("--scales", "1,x")


def test_the_old_form_becomes_options_and_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        new = arguments.with_options(
            ["RUN", "workers=2", "img_size=64", "pretrained=true", "epochs=3"], "train", OPTIONS, takes_fields=True
        )
    assert new == ["RUN", "--num-workers", "2", "--img-size", "64", "--pretrained", "epochs=3"]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "workers= is now --num-workers VALUE",
        "img_size= is now --img-size VALUE",
        "pretrained= is now --pretrained",
    ]


def test_the_present_form_stays(caplog):
    given = ["RUN", "--out", "a=b", "--pretrained", "data_options.x=1"]
    # What follows an option is its value.
    assert arguments.with_options(given, "evaluate", {**OPTIONS, "a": False}, takes_fields=False) == given
    assert not caplog.records


def test_files_with_an_equals_sign_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("top=5").write_text("", "utf-8")
    assert arguments.with_options(["top=5"], "predict", {"top": False}, takes_fields=False) == ["top=5"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("outt=3", "did you mean '--out'"),
        ("zzz=3", "mambar info --help"),
        ("pretrained=maybe", "must be true or false"),
    ],
)
def test_unknown_options_of_the_old_form_are_refused(argument, message):
    with pytest.raises(InputError, match=message):
        arguments.with_options([argument], "info", OPTIONS, takes_fields=False)


@pytest.mark.parametrize("size", ["0", "2x", "1x2x3", "wide", "9" * 400])
def test_image_sizes(size):
    assert arguments._image_size("224") == 224
    assert arguments._image_size("224x384") == (224, 384)
    with pytest.raises(typer.BadParameter, match="--img-size"):
        arguments._image_size(size)
