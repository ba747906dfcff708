import pytest

from mambar.training.loop.schedule import LearningRate
from mambar.training.recipe import Stage


def rates(steps=100, steps_per_epoch=10, **fields):
    stage = Stage(lr=1e-3, min_lr=1e-5, warmup_lr=1e-6, warmup_epochs=2.0, **fields)
    return LearningRate(stage=stage, steps=steps, steps_per_epoch=steps_per_epoch)


def test_warm_up_is_linear_and_starts_at_its_own_rate():
    found = rates()
    assert found.at(0) == 1e-6
    assert found.at(10) == pytest.approx((1e-3 + 1e-6) / 2)
    assert found.at(19) < 1e-3


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_after_the_warm_up_it_never_rises_and_stays_in_bounds(shape):
    found = rates(schedule=shape)
    values = [found.at(step) for step in range(20, 101)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1e-3 if shape == "constant" else 1e-5)


def test_at_the_epochs_it_is_timms_cosine():
    """The official scheduler changes once an epoch; ours has the same values at the epochs."""
    torch = pytest.importorskip("torch")
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=10, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-6)
    ours = rates()
    for epoch in range(10):
        theirs.step(epoch)
        assert ours.at(10 * epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_the_third_published_stage_is_constant_after_its_warm_up():
    from mambar.recipes.mambar_imagenet import FINETUNE

    found = LearningRate(stage=FINETUNE, steps=2000, steps_per_epoch=100)
    assert {round(found.at(step), 12) for step in range(500, 2000)} == {1e-5}


def test_a_warm_up_longer_than_the_run_is_cut():
    found = rates(steps=5)
    assert [found.at(step) for step in range(5)] == sorted(found.at(step) for step in range(5))
