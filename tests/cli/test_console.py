import io
import json
import logging

import pytest

from mambar.cli.console import PrintableFormatter, Progress, escaped, say_columns
from mambar.cli.main import main
from mambar.messages import printable

OBEYED = ["\x1b[2J", "\x9b2J", "\r", "\n", "\b", "\x7f", "\x07", "\u202e", "\u2066", "\ud800", "\0"]


@pytest.mark.parametrize("character", OBEYED, ids=repr)
def test_nothing_a_terminal_obeys_is_printed(character):
    assert printable(f"a{character}b").isprintable()
    assert printable("naïve 猫 🐈 a=b") == "naïve 猫 🐈 a=b"


@pytest.mark.parametrize("character", OBEYED, ids=repr)
def test_json_means_the_same_and_holds_no_control_character(character):
    content = {f"key {character}": [f"{character} 猫", 1.5]}
    text = escaped(json.dumps(content, indent=2, ensure_ascii=False))
    assert json.loads(text) == content and "猫" in text
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("character", OBEYED, ids=repr)
def test_a_log_message_is_one_line(character):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter())
    handler.emit(logging.makeLogRecord({"msg": "skipped %s", "args": (f"a{character}b",)}))
    assert stream.getvalue().removesuffix("\n").isprintable()


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\x9bb", "\u202egnp.x", "a\x07b", "$(reboot)", "a\nb"], ids=repr)
def test_an_error_about_a_hostile_name_is_one_printable_line(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", name, "none.png"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and line.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    "address", ["https://me:planted@host/x", "s3://me:planted@host", "data=https:/me:planted@host/x"]
)
def test_the_password_of_an_address_is_not_printed(address, capsys):
    assert "planted" not in printable(f"There is nothing at {address}.") and "@host" in printable(address)
    with pytest.raises(SystemExit):
        main(["train", "folder", f"data={address.removeprefix('data=')}"])
    assert "planted" not in capsys.readouterr().err


def test_columns_fit_80_characters_and_lose_nothing(capsys):
    cells = ("a name of several words", "multiply-adds", "84.5", "[red]4[/red]", "no\x1b[31m")
    say_columns(("name", "quantity", "paper (v1)", "ours", "ours, smoke (not comparable)"), [cells])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "\x1b" not in out and "…" not in out
    assert all(word in out for cell in cells[:4] for word in cell.split())


def test_progress_has_the_time_left_of_a_part(monkeypatch, caplog):
    seconds = iter([0, 6, 16, 17, 30])
    monkeypatch.setattr("mambar.cli.console.time.monotonic", lambda: next(seconds))
    progress = Progress(seconds=5)
    with caplog.at_level(logging.INFO, "mambar.cli"):
        progress("train", 100, 3100)
        progress("train", 1100, 3100)
        progress("train", 1200, 3100)
        progress("val", 20)
    assert caplog.messages == ["train: 100 images", "train: 1,100 of 3,100 images, 0:00:20 left", "val: 20 images"]
