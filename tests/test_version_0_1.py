"""Files of version 0.1.0 load, and give the values that version 0.1.0 computed."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import mambar
from mambar.cli.main import main
from mambar.evaluation.prediction import predict_image

RUN = Path(__file__).parent / "data" / "run_0.1.0"
FILES = Path(__file__).parent / "data" / "files_0.1.0"
RECORDED = json.loads((RUN / "result.json").read_text("utf-8"))["metrics"]
EXPECTED = safetensors.torch.load_file(FILES / "expected.safetensors")


def run_command(*arguments) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


def assert_expected(model) -> None:
    with torch.no_grad():
        logits = model.double().eval()(EXPECTED["images"].double())
    torch.testing.assert_close(logits, EXPECTED["logits"], rtol=0, atol=1e-12)


def test_the_run_directory_loads_with_its_classes_and_preprocessing():
    model = mambar.load(RUN)
    assert model.classes == tuple("0123456789")
    assert model.preprocessing.img_size == 8 and model.preprocessing.crop_pct == 1.0
    assert model.config.embed_dim == 16 and model.config.drop_path_rate == 0.1
    assert_expected(model)


def test_the_weights_file_loads():
    assert_expected(mambar.load(RUN / "model.safetensors"))


def test_timm_loads_the_run_directory():
    timm = pytest.importorskip("timm")
    importlib.import_module("mambar.hub.timm_register")

    assert_expected(timm.create_model(f"local-dir:{RUN}", pretrained=True))


def test_evaluate_gives_the_recorded_metrics(capsys):
    run_command("evaluate", RUN, "data=digits", "device=cpu", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] == RECORDED["top1"] and result["top5"] == RECORDED["top5"]
    assert result["loss"] == pytest.approx(RECORDED["val_loss"], abs=1e-6)


def test_predict_names_a_class():
    model = mambar.load(RUN)
    best = predict_image(model, torch.zeros(3, 8, 8, dtype=torch.uint8), top=1)[0]
    assert best.name in model.classes and 0.1 < best.probability < 1


def test_resuming_the_finished_run_says_so(tmp_path, capsys, caplog):
    shutil.copytree(RUN, tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    run_command("train", "--resume", tmp_path / "run", "--json")
    output = capsys.readouterr()
    assert "finished already" in output.err + caplog.text
    assert (
        json.loads(output.out)["metrics"]["top1"]
        == json.loads((RUN / "result.json").read_text("utf-8"))["metrics"]["top1"]
    )
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_a_run_starts_from_the_checkpoint(tmp_path):
    fields = ["embed_dim=16", "depth=2", "num_registers=2", "d_state=4", "drop_path_rate=0.0"]
    run_command(
        *("train", "digits", f"out={tmp_path / 'run'}", "device=cpu", "workers=0"),
        *(f"config.{field}" for field in fields),
        *("max_steps=1", "lr=1e-12", "min_lr=1e-13", "warmup_lr=1e-13", "weight_decay=0.0"),
        f"start_from={RUN / 'checkpoints' / 'step-00000004'}",
    )
    found, expected = mambar.load(tmp_path / "run").state_dict(), mambar.load(RUN).state_dict()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_exported_onnx_file_predicts():
    pytest.importorskip("onnxruntime")
    from mambar.export import OnnxModel

    model = OnnxModel(FILES / "model.onnx")
    assert model.classes == ("ant", "bee", "cat") and model.size == (16, 16) and model.crop == 0.875
    logits = torch.from_numpy(model.logits(EXPECTED["onnx_images"].numpy()))
    torch.testing.assert_close(logits.double(), EXPECTED["onnx_logits"], rtol=0, atol=1e-5)


def test_the_transformers_directory_loads():
    transformers = pytest.importorskip("transformers")
    importlib.import_module("mambar.hub.huggingface")

    loaded = transformers.AutoModelForImageClassification.from_pretrained(FILES / "huggingface").eval()
    assert loaded.config.hidden_size == 16 and loaded.config.id2label == dict(enumerate("0123456789"))
    assert_expected(loaded.model)
    processor = transformers.AutoImageProcessor.from_pretrained(FILES / "huggingface")
    assert processor.preprocessing["img_size"] == 8 and processor.preprocessing["crop_pct"] == 1.0
