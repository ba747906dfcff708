"""`mambar export`: the file, its report and its figures; nothing overwritten, nothing begun that cannot end."""

import functools
import json
import os
import signal
import subprocess
import sys

import pytest

# Nothing can be traced through the shape-checking hook (`make shapes`).
pytestmark = pytest.mark.skipif(bool(os.environ.get("MAMBAR_SHAPES")), reason="the shape-checking hook is in the way")


@pytest.mark.slow
def test_onnx_with_its_report(mambar_command, trained):
    code, out, err = mambar_command("export", trained)
    file = trained / "export" / "model.onnx"
    assert code == 0, err
    assert "checked on 256 images" in out and "pixels per second on this CPU" in out and "max |Δlogit|" in out
    report = json.loads((trained / "export" / "model.onnx.parity.json").read_text("utf-8"))
    assert report["passed"] and report["images"] == 256 and report["options"]["dynamic_size"] is True
    before = file.read_bytes()
    code, out, err = mambar_command("export", trained)
    assert code == 2 and "exists already" in err and "--force" in err and err.count("\n") == 1
    assert file.read_bytes() == before
    code, out, _ = mambar_command("export", trained, "--force", "--json", "--quiet")
    assert code == 0 and json.loads(out)["passed"] is True


@pytest.mark.slow
def test_transformers_directory(mambar_command, trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    code, out, err = mambar_command("export", trained, "--format", "transformers", f"--out={tmp_path / 'hf'}")
    assert code == 0, err
    assert "same top 5 256" in out
    assert json.loads((tmp_path / "hf.parity.json").read_text("utf-8"))["max_difference"] <= 1e-5
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert "\n# hf\n" in (tmp_path / "hf" / "README.md").read_text("utf-8")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    assert list(loaded.config.id2label.values()) == ["ant", "bee", "cat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "hf.parity.json", "run"]
    code, _, err = mambar_command("export", trained, "--format", "transformers", f"--out={tmp_path / 'hf'}")
    assert code == 2 and "exists already" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("torch-export", "model.pt2"),
        pytest.param("aoti", "model.aoti.pt2", marks=pytest.mark.soak),
        ("openvino", "model.xml"),
    ],
)
def test_the_other_formats(mambar_command, trained, need_program, format, file):
    if format == "openvino":
        pytest.importorskip("openvino")
    if format == "aoti":
        need_program("g++")
    code, out, err = mambar_command("export", trained, "--format", format)
    assert code == 0, err
    assert (trained / "export" / file).is_file() and f"model{file[5:]}: " in out and "checked on 256 images" in out
    assert json.loads((trained / "export" / f"{file}.parity.json").read_text("utf-8"))["passed"]


@pytest.mark.slow
def test_int8_shows_its_cost_on_labelled_images(mambar_command, tmp_path):
    from mambar.recipes.evaluate_run import evaluate_run
    from mambar.recipes.index import get_recipe
    from mambar.recipes.run import run

    small = get_recipe("digits").replace(epochs=1)
    run(small, out=tmp_path / "run", device="cpu", num_workers=0)
    code, out, err = mambar_command("export", tmp_path / "run", "--int8")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "export" / "model-int8.onnx.parity.json").read_text("utf-8"))
    assert report["tolerance"] is None and report["images"] >= 256 and report["format"] == "onnx int8"
    assert 0.1 < report["exported_accuracy"] <= 1 and "accuracy on them: " in out
    assert report["model_accuracy"] == pytest.approx(evaluate_run(tmp_path / "run").top1, abs=0.1)


@pytest.mark.slow
def test_int8_without_labels_says_that_accuracy_was_not_run(mambar_command, trained):
    code, out, err = mambar_command("export", trained, "--int8")
    assert code == 0, err
    assert "accuracy: not run; give --data SET" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--format", "tflite"), "choose one of onnx, torch-export, aoti, openvino, transformers"),
        (("--format", "aoti", "--int8"), "--int8 is an option of --format onnx"),
        (("--format", "openvino", "--scan=loop"), "--scan is an option of --format onnx"),
        (("--format", "openvino", "--kernels"), "--kernels is an option of --format torch-export and aoti"),
        (("--format", "transformers", "img_size=32"), "--img-size is an option of traced formats"),
        (("scan=magic",), "loop or doubling"),
        (("--opset", "3"), "--opset"),
        (("img_size=17",), "multiple of the patch"),
        (("data=digits",), "classes"),
        (("out=model.txt",), "must end in .onnx"),
        (("size=3",), "has no option 'size'"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(mambar_command, trained, monkeypatch, tmp_path, arguments, part):
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    code, out, err = mambar_command("export", trained, "--quiet", *arguments)
    assert code == 2 and part in err and err.count("\n") == 1 and out == ""
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "export") == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_nothing_behind(trained, tmp_path, number, code):
    out = tmp_path / "new" / "folder" / "model.onnx"
    command = [sys.executable, "-m", "mambar", "export", str(trained), "--out", str(out)]
    before = sorted(tmp_path.rglob("*"))
    # A shell starts background jobs, so perhaps these tests, with SIGINT ignored.
    received = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", preexec_fn=received) as process:
        # The longest step: the temporary directory exists by then.
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "Translating the traced graph" in line:
                process.send_signal(number)
        assert process.wait(60) == code, lines
    text = "".join(lines)
    assert text.index("Tracing the model") < text.index("Translating the traced graph")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_predicting_from_onnx_imports_no_torch(mambar_command, trained, picture):
    code, _, err = mambar_command("export", trained)
    assert code == 0, err
    file = trained / "export" / "model.onnx"
    probe = (
        "import sys\nfrom mambar.cli.main import main\n"
        f"try: main(['predict', {str(file)!r}, {str(picture)!r}, '--json'])\n"
        "finally: print('HEAVY', *(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert done.returncode == 0 and done.stderr.strip() == "HEAVY", done.stderr
    found = json.loads(done.stdout)[str(picture)]
    code, out, _ = mambar_command("predict", trained, picture, "--json")
    expected = json.loads(out)[str(picture)]
    assert [guess["name"] for guess in found] == [guess["name"] for guess in expected]
    probabilities = [guess["probability"] for guess in expected]
    assert [guess["probability"] for guess in found] == pytest.approx(probabilities, abs=1e-6)
    code, _, err = mambar_command("predict", file, picture, "--device=cuda")
    assert code == 2 and "omit it" in err
