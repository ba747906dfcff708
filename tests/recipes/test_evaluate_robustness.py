import json

import pytest
import torch

from boxed_files import BOXES, scene, write_tiny_imagenet
from mambar.cli.main import main
from mambar.data import EvalTransform, Preprocessing, open_dataset
from mambar.errors import InputError
from mambar.hub import save_model
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.recipes.evaluate_robustness import evaluate_corruptions, evaluate_imagenet_variant
from mambar.recipes.evaluate_run import evaluate_run


@pytest.fixture
def files(tmp_path):
    """A saved classifier of the classes of a small Tiny-ImageNet, and the data."""
    data = write_tiny_imagenet(tmp_path)
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=1, num_registers=2, num_classes=3)
    classes = open_dataset(data, "val").classes
    save_model(tmp_path / "model", VisionMamba(config), classes=classes, preprocessing=Preprocessing(img_size=32))
    return tmp_path / "model", data


def test_clean_accuracy_is_that_of_evaluate(files, need_package, monkeypatch):
    need_package("corrupt_tta")
    model, data = files
    lines, decoded = [], []
    crop = EvalTransform.pixels
    monkeypatch.setattr(EvalTransform, "pixels", lambda *given: decoded.append(1) or crop(*given))
    result = evaluate_corruptions(
        model, data=str(data), kinds=("contrast", "fog"), severities=(2, 5), progress=lines.append
    )
    assert len(decoded) == 2 * 6, "each image once for all severities of a kind"
    assert result.clean == evaluate_run(model, data=str(data)).top1 and result.count == 6
    assert [list(row) for row in result.top1.values()] == [[2, 5], [2, 5]] and list(result.top1) == ["contrast", "fog"]
    assert result.mean == pytest.approx(sum(value for row in result.top1.values() for value in row.values()) / 4)
    assert len(lines) == 4 and lines[0].startswith("contrast 2: top-1")


def test_severities_of_one_pass_are_those_of_a_pass_each(files, need_package):
    need_package("corrupt_tta")
    model, data = files
    together = evaluate_corruptions(model, data=str(data), kinds=("gaussian_noise",), severities=(1, 3, 5))
    apart = [evaluate_corruptions(model, data=str(data), kinds=("gaussian_noise",), severities=(s,)) for s in (1, 3, 5)]
    assert list(together.top1["gaussian_noise"].values()) == [each.mean for each in apart]
    with pytest.raises(InputError, match="kinds or severities is empty"):
        evaluate_corruptions(model, data=str(data), severities=())


def run(arguments, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


@pytest.mark.slow
def test_the_command_writes_table_and_plot(files, tmp_path, capsys, need_package):
    need_package("corrupt_tta")
    model, data = files
    common = ["evaluate", str(model), "--data", str(data)]
    out = ["--out", str(tmp_path / "out")]
    code, text, error = run([*common, "--corruptions", "contrast,pixelate", "--severities", "1,5", *out], capsys)
    assert code == 0, error
    assert "contrast" in text and "mean" in text and "(6 images, corrupt-tta" in text
    numbers = json.loads((tmp_path / "out/corruptions.json").read_text("utf-8"))
    assert numbers["format_version"] == 1 and set(numbers["top1"]) == {"contrast", "pixelate"}
    assert (tmp_path / "out/corruptions.png").stat().st_size > 10_000
    code, _, error = run([*common, "--corruptions", "contrasts"], capsys)
    assert code == 2 and "did you mean 'contrast'?" in error
    code, _, error = run([*common, *out], capsys)
    assert code == 2 and "--out needs --corruptions or a segmentation protocol" in error
    code, _, error = run([*common, "--corruptions", "fog", "--crop-pct", "0.9"], capsys)
    assert code == 2 and "--crop-pct has no effect with --corruptions" in error


@pytest.mark.slow
def test_the_command_evaluates_a_variant_of_imagenet(files, tmp_path, capsys):
    model, _ = files
    # Goldfish and tiger cat are classes of the model, tench is not.
    for folder in ("n01443537", "n02124075", "n01440764"):
        (tmp_path / "a" / folder).mkdir(parents=True)
        scene(BOXES[0], 1).save(tmp_path / "a" / folder / "1.png")
    code, text, _ = run(
        ["evaluate", str(model), "--data", "imagenet_variant", f"data_options.root={tmp_path}/a"], capsys
    )
    assert code == 0 and "(2 images, 2 classes; 1 images of other classes left out)" in text
    result = evaluate_imagenet_variant(model, data_options={"root": str(tmp_path / "a"), "limit": 1})
    assert result.count + result.left_out == 1 and result.num_classes == 2
