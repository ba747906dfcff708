"""The command line as a user meets it: one line, the right exit code, nothing lost."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mambar
from mambar.cli.main import _VERBS


def test_version_and_help(mambar_command):
    assert mambar_command("--version")[:2] == (0, f"mambar {mambar.__version__}\n")
    code, out, _ = mambar_command("--help")
    assert code == 0 and "train" in out and "demo" in out


def test_help_says_each_verb_in_a_whole_line(mambar_command):
    _, out, _ = mambar_command("--help")
    verbs = out[out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in verbs] == list(_VERBS)
    assert all(line.endswith(".") and not line.endswith("...") for line in verbs), out


def test_without_arguments_the_help_is_printed(mambar_command):
    code, out, err = mambar_command()
    assert (code, out, err) == mambar_command("--help") and code == 0 and len(out.splitlines()) > 20


@pytest.mark.parametrize("verb", _VERBS)
def test_help_fits_a_terminal_and_names_no_python_type(mambar_command, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = mambar_command(verb, "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert " <" not in out and "list[" not in out
    assert ("[NAME=VALUE]...\n" in out) == (
        verb in ("train", "evaluate", "analyze", "recipe", "reproduce", "demo", "pack")
    )


@pytest.mark.parametrize(
    "command",
    ["info", "info mambar_large_patch16_224", "recipe --list", "recipe upernet_ade20k", "reproduce --list"],
)
def test_tables_fit_a_terminal(mambar_command, command):
    code, out, _ = mambar_command(*command.split())
    assert code == 0 and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("given", ["--epochs 5", "--epochs=5"])
def test_a_field_written_as_an_option_is_shown_as_a_field(mambar_command, given):
    for verb in ("train digits", "recipe digits", "demo"):
        code, _, err = mambar_command(*verb.split(), *given.split())
        assert code == 2 and "--epochs is a field of the recipe, not an option; write epochs=5." in err
    assert "write config.depth=2." in mambar_command("train", "digits", "--config.depth", "2")[2]
    assert "See mambar train --help." in mambar_command("train", "digits", "--nothing")[2]


@pytest.mark.soak
def test_help_costs_little():
    """Under 0.6 s of processor time, the best of three; a busy machine does not change that."""
    costs = []
    for verb in ((), ("train",), ("serve",)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mambar", *verb, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.6


@pytest.mark.parametrize("again", ["before the line", "during the line"])
def test_a_second_ctrl_c_on_the_way_out_leaves_one_line_and_the_code(monkeypatch, capfd, tmp_path, again):
    """The second comes after the save, when signals are the system's again."""
    from mambar.cli import main as command
    from mambar.training.loop.signals import Stopped

    def stopped(*arguments, **named):
        try:
            raise Stopped("SIGINT", step=3, checkpoint=tmp_path / "step-00000003", out=tmp_path)
        finally:
            if again == "before the line":
                raise KeyboardInterrupt

    def pressed(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_call", stopped)
    if again == "during the line":
        monkeypatch.setattr(command.typer, "echo", pressed)
    with pytest.raises(SystemExit) as ended:
        command.main(["train", "digits"])
    assert ended.value.code == 130
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (again == "before the line")
    assert all(f"mambar train --resume {tmp_path}" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("mambar ex", "export"), ("mambar serve --pub", "--public"), ("mambar export x --format on", "onnx")],
)
def test_completion(words, expected):
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_MAMBAR_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [Path(sys.executable).with_name("mambar")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
    )
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        "demo",
        "train",
        "evaluate",
        "predict",
        "analyze",
        "recipe",
        "convert",
        "info",
        "bench",
        "reproduce",
        "segment",
        "detect",
        "pack",
        "doctor",
        "export",
        "serve",
    ],
)
def test_every_verb_has_help(mambar_command, verb):
    code, out, _ = mambar_command(verb, "--help")
    assert code == 0 and "Usage" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("nonsense",), "nonsense"),
        (("train",), "needs a recipe's name or --resume DIR"),
        (("train", "digit"), "did you mean 'digits'"),
        (("train", "digits", "epoch=2"), "did you mean 'epochs'"),
        (("train", "digits", "epochs=two"), "epochs"),
        (("train", "digits", "--resume", "x"), "omit the name 'digits'"),
        (("train", "--resume", "no/where"), "recipe.json"),
        (("train", "folder", "data=no/where"), "no/where"),
        (("info", "mambar_huge"), "There is no model 'mambar_huge'"),
        (("info", "mambar_base_patch16_224", "img_size=8"), "holds no patch"),
        (("evaluate", "no/where/at/all"), "There is no model at"),
        (("convert", "no.pth", "out"), "There is no file no.pth"),
        (("predict", "run"), ""),
    ],
)
def test_bad_input_is_one_line_and_exit_2(mambar_command, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = mambar_command(*arguments)
    assert code == 2, err
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert part in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_debug_shows_where(mambar_command):
    code, _, err = mambar_command("train", "digit", "--debug")
    assert code == 2 and "Traceback" in err


def test_a_bug_of_ours_exits_with_1(mambar_command, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("mambar.models.backbones.config_of", broken)
    code, _, err = mambar_command("info", "mambar_base_patch16_224")
    assert code == 1 and "RuntimeError: boom (run again with --debug" in err


def test_predict(mambar_command, trained, picture):
    code, out, _ = mambar_command("predict", trained, picture, "--top=2")
    assert code == 0 and len(out.splitlines()) == 3
    code, out, _ = mambar_command("predict", trained, picture, "--json")
    guesses = json.loads(out)[str(picture)]
    assert sorted(guess["name"] for guess in guesses) == ["ant", "bee", "cat"]
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1, abs=1e-5)


def test_predict_refuses_what_is_no_image(mambar_command, trained, tmp_path):
    (tmp_path / "notes.png").write_text("not an image", "utf-8")
    code, _, err = mambar_command("predict", trained, tmp_path / "notes.png")
    assert code == 2 and "notes.png" in err and err.count("\n") == 1


def test_info(mambar_command, trained):
    code, out, _ = mambar_command("info", "mambar_base_patch16_224", "--json")
    assert code == 0 and json.loads(out)["complexity"]["parameters"] == 99_301_096
    code, out, _ = mambar_command("info", "timm/vit_tiny_patch16_224", "--img-size=32")
    assert code == 0 and "5,680,552" in out
    code, out, _ = mambar_command("info", trained, "img_size=32x16")
    assert code == 0 and "4 x 2" in out
    code, out, _ = mambar_command("info")
    assert code == 0 and len(out.splitlines()) == 1 + 7 + 2
    assert "vim_tiny_patch16_224.clothing" in out


def test_convert_there_and_back(mambar_command, trained, tmp_path):
    code, out, _ = mambar_command("convert", "--official", trained, tmp_path / "released.safetensors")
    assert code == 0, out
    code, _, err = mambar_command("convert", tmp_path / "released.safetensors", tmp_path / "back", "img_size=16")
    assert code == 0, err
    ours, back = mambar.load(trained).state_dict(), mambar.load(tmp_path / "back").state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours)
    code, _, err = mambar_command("convert", tmp_path / "released.safetensors", tmp_path / "back")
    assert code == 2 and "--force" in err


def test_recipe_pages(mambar_command):
    code, out, _ = mambar_command("recipe", "--list")
    assert code == 0 and out.splitlines()[0].startswith("mambar_tiny")
    code, out, _ = mambar_command("recipe", "digits", "epochs=3", "--json")
    assert code == 0 and json.loads(out)["stages"][0]["epochs"] == 3
    code, out, _ = mambar_command("recipe", "mambar_base")
    assert code == 0 and "stages.0.epochs" in out
    assert "550,440 steps, 538,030,080 images, 230 epochs at 224 pixels, hours: need images/s" in " ".join(out.split())
    code, out, _ = mambar_command("recipe", "mambar_base", "--speed", "10000")
    assert code == 0 and out.count(" hours\n") == 4 and "  intermediate " in out
    code, out, _ = mambar_command("recipe", "folder")
    assert code == 0 and "give --images" in out
    code, out, _ = mambar_command("recipe", "folder", "--images", "320")
    assert code == 0 and "500 steps, 16,000 images" in out


def test_pack(mambar_command, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / name / f"{number}.png")
    code, out, err = mambar_command("pack", tmp_path / "data", tmp_path / "shards")
    assert code == 0 and "8 images to train" in out, err
    code, _, err = mambar_command("pack", tmp_path / "data", tmp_path / "shards")
    assert code == 2 and err.count("\n") == 1


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mambar", "--version"], capture_output=True, text=True, timeout=60, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stdout.startswith("mambar ")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m mambar info | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_predict_takes_files_folders_and_patterns_and_skips_the_unreadable(
    mambar_command, trained, picture, tmp_path, caplog
):
    for name in ("photos/a.png", "photos/deep/b.jfif", "photos/notes.txt", "more/c1.png", "more/c2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(picture).save(tmp_path / name, "JPEG" if name.endswith("jfif") else "PNG")
    (tmp_path / "photos/bad.jpg").write_bytes(b"not an image")
    arguments = ("predict", trained, picture, tmp_path / "photos", tmp_path / "more" / "c*.png", tmp_path / "gone.png")
    code, out, err = mambar_command(*arguments, "--top=1")
    assert code == 2 and len(out.splitlines()) == 2 * 5
    assert "bad.jpg cannot be read" in caplog.text and "gone.png" in caplog.text
    assert "files that are not PNG, JPEG or WEBP are left out: 1 (1 .txt)" in caplog.text
    assert "2 of 7 images could not be read" in err
    code, out, _ = mambar_command(*arguments, "--json")
    found = json.loads(out)
    assert code == 2 and len(found) == 7 and "cannot be read" in found[str(tmp_path / "photos/bad.jpg")]["error"]
    code, _, err = mambar_command("predict", trained, picture, "--max-pixels=100")
    assert code == 2 and "30x20 pixels; at most 100 are decoded" in err and "--max-pixels" in err
