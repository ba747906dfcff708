"""Self-distillation: teacher and center follow their formulas, several crop sizes, resumed runs on any processes."""

import importlib

import pytest
import torch

from mambar.errors import RecipeError
from mambar.pretraining.self_distillation import SelfDistillationTask, StudentTeacher
from training import faults, runs

REGISTER = (importlib.import_module, "mambar.pretraining.self_distillation")
TASK = {"num_local_crops": 2, "local_size": 8, "hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 12}


def recipe(**changes):
    fields = {"task_options": TASK, "img_size": 12, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    return runs.tiny(task="self_distillation", **fields | changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("self_distillation") / "run"
    runs.here(recipe(), out)
    return out


class Backbone(torch.nn.Linear):
    head_hidden_size = 5

    def forward(self, images):
        return super().forward(images.mean((2, 3)))


def test_loss_center_and_teacher_follow_their_formulas():
    made = recipe(task_options={**TASK, "num_local_crops": 1, "teacher_momentum": 0.75})
    task = SelfDistillationTask(made, made.stages[0], classes="0123456789")
    torch.manual_seed(0)
    model = StudentTeacher(Backbone(3, 5), task.distillation).train()
    assert not model.teacher.training
    model.center.normal_()
    crops = {name: torch.randn(4, 3, 6, 6) for name in ("global_0", "global_1", "local_0")}
    found = task.loss(model, crops)
    outputs = [model.head(model.backbone(crops[name])) for name in crops]
    with torch.no_grad():
        backbone, head = model.teacher
        targets = [head(backbone(crops[name])) for name in ("global_0", "global_1")]
    losses = []
    for place, target in enumerate(targets):
        for other, output in enumerate(outputs):
            if place != other:
                p = ((target - model.center) / 0.04).softmax(1)
                losses.append(-(p * (output / 0.1).log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
    center, teacher = model.center.clone(), model.teacher[0].weight.clone()
    with torch.no_grad():
        model.backbone.weight += 1
    task.after_step(model, None, {"teacher": found["teacher"]})
    torch.testing.assert_close(model.center, 0.9 * center + 0.1 * torch.stack(targets).mean((0, 1)))
    torch.testing.assert_close(model.teacher[0].weight, 0.75 * teacher + 0.25 * model.backbone.weight)


@pytest.mark.rel
def test_a_killed_run_resumes_bit_identically(straight, tmp_path):
    kill = (faults.all_of, REGISTER, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(recipe(), tmp_path / "run", before=kill)) == [-9]
    assert runs.finish(runs.start(recipe(), tmp_path / "run", before=REGISTER, resume=True)) == [0]
    assert runs.trace(tmp_path / "run") == runs.trace(straight)


@pytest.mark.rel
@pytest.mark.soak
def test_two_processes_equal_one(straight, tmp_path):
    group = runs.start_group(recipe(), tmp_path / "run", world=2, befores={0: REGISTER, 1: REGISTER})
    assert runs.finish(*group) == [0, 0]
    assert runs.trace(tmp_path / "run") == runs.trace(straight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_crops": 3}, "did you mean 'num_local_crops'"),
        ({"local_size": 16}, "local_size=16 exceeds img_size=12, the size of the global crops"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        runs.here(recipe(task_options=options), tmp_path / "run")
