"""Distillation: losses against their formulas, the teacher's own normalization, and resumed runs."""

import importlib

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import RecipeError
from mambar.pretraining import distillation
from mambar.pretraining.distillation import Teacher
from training import faults, runs

REGISTER = (importlib.import_module, "mambar.pretraining.distillation")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    runs.here(runs.tiny(epochs=1), out)
    return out


def recipe(teacher, **options):
    return runs.tiny(task="distillation", task_options={"teacher": str(teacher), **options})


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_logit_losses_are_those_of_the_paper(target, teacher):
    made = recipe(teacher, target=target, weight=0.25, temperature=2.0)
    task = distillation.DistillationTask(made, made.stages[0], classes=[str(digit) for digit in range(10)])
    logits, images = torch.randn(4, 10), torch.randn(4, 3, 8, 8)
    wanted = task.teacher.model(images)
    labels = torch.eye(10)[:4]
    found = task.loss(lambda given: logits, {"images": images, "targets": labels})
    cross_entropy = -(labels * logits.log_softmax(1)).sum(1).mean()
    if target == "hard":
        expected = nn.functional.cross_entropy(logits, wanted.argmax(1))
    else:
        p, q = (wanted / 2).softmax(1), (logits / 2).log_softmax(1)
        expected = 4 * (p * (p.log() - q)).sum(1).mean()
    torch.testing.assert_close(found["distillation"], expected)
    torch.testing.assert_close(found["loss"], 0.75 * cross_entropy + 0.25 * expected)


def test_the_teacher_sees_its_own_normalization():
    seen = []

    class Watch(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    student, own = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3), Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4,) * 3)
    pixels = torch.rand(2, 3, 4, 4)
    Teacher(Watch(), own).logits(student.normalize((pixels * 255).to(torch.uint8)), student)
    expected = own.normalize((pixels * 255).to(torch.uint8))
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


@pytest.mark.rel
@pytest.mark.parametrize("target", [pytest.param("soft", marks=pytest.mark.soak), "features"])
def test_a_killed_run_resumes_bit_identically(target, teacher, tmp_path):
    made = recipe(teacher, target=target) if target == "soft" else _features_recipe(tmp_path)
    runs.here(made, tmp_path / "straight")
    kill = (faults.all_of, REGISTER, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(made, tmp_path / "run", before=kill)) == [-9]
    assert runs.finish(runs.start(made, tmp_path / "run", before=REGISTER, resume=True)) == [0]
    assert runs.trace(tmp_path / "run") == runs.trace(tmp_path / "straight")
    # Neither the weights nor the checkpoint contain the teacher or the map to its features.
    assert not [name for name in load_file(tmp_path / "run" / "model.safetensors") if "projection" in name]
    assert not [name for name in runs.trace(tmp_path / "run").tensors if "teacher" in name]
    rows = [row for row in runs.read_rows(tmp_path / "run") if row["kind"] == "training"]
    assert all(row["distillation"] > 0 for row in rows)


def _features_recipe(tmp_path):
    """A convolutional teacher of timm whose weights are in a file."""
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "teacher.pth")
    return recipe("timm/resnet10t", teacher_weights=str(tmp_path / "teacher.pth"), target="features")


def test_settings_that_do_not_fit_are_refused(tmp_path, teacher):
    for options, message in (
        ({"teacher": "timm/resnet_none"}, "not a model of timm"),
        ({"teacher": str(tmp_path / "none")}, "task_options.teacher="),
        ({}, "teacher"),
        ({"teacher": str(teacher), "weight": 2}, "weight=2"),
    ):
        with pytest.raises(RecipeError, match=message):
            runs.here(runs.tiny(task="distillation", task_options=options), tmp_path / "run")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "teacher.pth")
    made = recipe("timm/resnet10t", teacher_weights=str(tmp_path / "teacher.pth"))
    with pytest.raises(RecipeError, match="has 1000 classes, the data 10"):
        runs.here(made, tmp_path / "run")
