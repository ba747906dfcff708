"""P11: a non-finite step changes nothing on any rank; too many in a row end the run."""

import copy

import pytest
import torch

from mambar.data import Batch
from mambar.errors import NonFiniteError
from mambar.hub import create_model
from mambar.training.classification import ClassificationTask
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.loop.context import TrainingProgress
from mambar.training.loop.ema import Ema
from mambar.training.loop.optim import Optimizer, param_groups
from mambar.training.loop.precision import LossScale, PrecisionPolicy
from mambar.training.loop.signals import StopSignals
from mambar.training.loop.update import StepKeys, TrainStep
from mambar.training.recipe import Recipe, Stage
from training import faults, runs

CPU = torch.device("cpu")


def make_task(kind):
    stage = Stage(img_size=8, label_smoothing=0.1)
    recipe = Recipe(name="tiny", model="mambar_tiny_patch16_224", stages=(stage,))
    return kind(recipe, stage, classes="abcde")


def make_updater(*, precision="fp32", shards=1, grad_accum_steps=1, clip_grad=None, drop_path_rate=0.0, lr=1e-3):
    torch.manual_seed(0)
    numerics = PrecisionPolicy.of(precision, CPU)
    model = create_model(
        "mambar_tiny_patch16_224",
        img_size=8,
        num_classes=5,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_registers=2,
        register_reduction=2,
        drop_path_rate=drop_path_rate,
    ).to(numerics.param_dtype)
    stage = Stage(lr=lr)
    return TrainStep(
        model=model,
        forward=model,
        task=make_task(ClassificationTask),
        optimizer=Optimizer(param_groups(model, stage), stage),
        ema=Ema(model, 0.9),
        scale=LossScale(active=precision == "fp16"),
        precision=numerics,
        process_group=ProcessGroup(),
        num_shards=shards,
        grad_accum_steps=grad_accum_steps,
        clip_grad=clip_grad,
    )


def batches(shards=1, size=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (size,), generator=generator)
    own = size // shards
    parts = [slice(shard * own, (shard + 1) * own) for shard in range(shards)]
    return iter(
        [
            Batch({"images": images[p], "labels": labels[p], "indices": labels[p]}, 0, shard)
            for shard, p in enumerate(parts)
        ]
    )


def services():
    return {"stop_signals": StopSignals(), "progress": TrainingProgress()}


def snapshot(updater):
    return copy.deepcopy((updater.model.state_dict(), updater.ema.state(), updater.optimizer.state()))


def same(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


def step(updater, number=0, **options):
    return updater(
        batches(**options),
        StepKeys(seed=1, epoch=0, step=number),
        lr=1e-3,
        stop_signals=StopSignals(),
        progress=TrainingProgress(),
    )


class Poisoned(ClassificationTask):
    kind, value = "loss", float("nan")

    def loss(self, model, batch):
        if self.kind == "activation":
            handle = model.blocks[1].mixer.register_forward_hook(lambda module, inputs, output: output * self.value)
            try:
                return super().loss(model, batch)
            finally:
                handle.remove()
        found = super().loss(model, batch)
        if self.kind == "gradient":
            parameter = model.blocks[0].mixer.out_proj.weight
            return {**found, "loss": found["loss"] + faults._Spoil.apply(parameter, self.value).sum()}
        return {**found, "loss": found["loss"] * self.value}


def poison(updater, kind, value):
    task = updater.task
    poisoned = make_task(Poisoned)
    poisoned.kind, poisoned.value = kind, value
    updater.task = poisoned
    return task


@pytest.mark.rel
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["loss", "gradient", "activation"])
@pytest.mark.slow
def test_p11_a_bad_number_changes_nothing_of_the_state(kind, value, precision):
    updater = make_updater(precision=precision, clip_grad=1.0)
    assert step(updater).is_finite
    before = snapshot(updater)
    good = poison(updater, kind, value)
    outcome = step(updater, 1)
    assert not outcome.is_finite
    assert same(before, snapshot(updater))
    updater.task = good
    assert step(updater, 2).is_finite
    assert not same(before, snapshot(updater))
    assert all(torch.isfinite(p).all() for p in updater.model.parameters())


@pytest.mark.rel
def test_p11_the_harness_would_notice_clipping_before_the_check():
    """The negative control: torch's own clipping spreads one NaN gradient to every parameter."""
    updater = make_updater(clip_grad=1.0)
    poison(updater, "gradient", float("nan"))
    step(updater)
    bad = sum(bool(torch.isnan(p.grad).any()) for p in updater.model.parameters())
    torch.nn.utils.clip_grad_norm_(updater.model.parameters(), 1.0)
    spread = sum(bool(torch.isnan(p.grad).any()) for p in updater.model.parameters())
    assert bad == 1 and spread == len(list(updater.model.parameters()))


@pytest.mark.slow
@pytest.mark.rel
@pytest.mark.parametrize("grad_accum_steps, shards", [(2, 1), (6, 1), (1, 3), (2, 3)])
def test_accumulation_and_shards_equal_the_large_batch(grad_accum_steps, shards):
    """With drop path, whose masks are drawn for a whole shard before it is split."""
    whole = make_updater(precision="fp64", drop_path_rate=0.3 if shards == 1 else 0.0)
    parts = make_updater(
        precision="fp64", drop_path_rate=0.3 if shards == 1 else 0.0, grad_accum_steps=grad_accum_steps, shards=shards
    )
    for number in range(3):
        one = whole(
            batches(seed=number),
            StepKeys(seed=1, epoch=0, step=number),
            lr=1e-3,
            stop_signals=StopSignals(),
            progress=TrainingProgress(),
        )
        two = parts(
            batches(shards, seed=number),
            StepKeys(seed=1, epoch=0, step=number),
            lr=1e-3,
            stop_signals=StopSignals(),
            progress=TrainingProgress(),
        )
        assert one.loss == pytest.approx(two.loss, rel=1e-12)
        assert one.scalars["num_correct"] == two.scalars["num_correct"]
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-10)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9


def test_the_gradient_is_that_of_plain_pytorch():
    updater = make_updater(precision="fp64", shards=2)
    reference = copy.deepcopy(updater.model)
    [one, two] = list(batches(2))
    task = updater.task
    loss = sum(task.loss(reference, task.prepare(b, seed=1, epoch=0))["loss"] for b in _doubled(one, two)) / 2
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1e9)
    outcome = updater(batches(2), StepKeys(seed=1, epoch=0, step=0), lr=0.0, **services())
    assert outcome.grad_norm == pytest.approx(float(norm), rel=1e-12)
    assert outcome.loss == pytest.approx(float(loss.detach()), rel=1e-12)


def _doubled(*parts):
    return [b.replace(images=b.images.double()) for b in parts]


def test_clipping_bounds_the_norm_that_the_optimiser_sees():
    updater = make_updater(clip_grad=0.01)
    outcome = step(updater)
    seen = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in updater.model.parameters()]))
    assert outcome.grad_norm > 0.01
    assert float(seen) == pytest.approx(0.01, rel=1e-3)


def test_the_fp16_scale_adapts_and_is_not_counted_as_an_error():
    scale = LossScale(active=True, start=8.0, patience=2)
    assert [scale.update(finite=False) for _ in range(4)] == [True, True, True, False]
    assert scale.value == 1.0
    for _ in range(4):
        scale.update(finite=True)
    assert scale.value == 4.0
    other = LossScale(active=True)
    other.load(scale.state())
    assert other.state() == scale.state()
    still = LossScale(active=False)
    assert not still.update(finite=False) and still.value == 1.0


def test_fp16_training_scales_the_loss_and_unscales_the_gradient():
    plain, scaled = make_updater(), make_updater(precision="fp16")
    assert scaled.scale.value == 2.0**16
    one, two = step(plain), step(scaled)
    assert two.loss == pytest.approx(one.loss, rel=1e-2)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=3e-2)


@pytest.mark.rel
@pytest.mark.parametrize("kind", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_p11_all_processes_skip_a_step_that_is_not_finite_on_one(tmp_path, kind):
    """Shard 1 is poisoned at one step: on two processes only rank 1 sees it, on one process it is the same run."""
    fault = (faults.poison, kind, (1,), 1, float("inf"), 1)
    one = runs.start(runs.tiny(), tmp_path / "one", before=fault)
    two = runs.start_group(runs.tiny(), tmp_path / "two", world=2, befores={1: fault})
    assert runs.finish(one, *two) == [0, 0, 0]
    trace = runs.trace(tmp_path / "one")
    assert trace.progress["num_skipped"] == 1
    assert trace == runs.trace(tmp_path / "two")
    [skipped] = [row for row in trace.metrics if row["kind"] == "training" and row["grad_norm"] is None]
    assert skipped["step"] == 2 and skipped["skipped"] == 1


@pytest.mark.rel
def test_p11_too_many_in_a_row_exit_with_4_and_a_message(tmp_path):
    out = tmp_path / "run"
    recipe = runs.tiny(max_consecutive_skips=2, max_rollbacks=0)
    process = runs.start(recipe, out, before=(faults.poison, "activation", (0, 1, 2)))
    assert runs.finish(process) == [4]
    text = runs.error_of(out)
    assert "2 steps in a row without finite numbers up to step 2" in text
    assert "module blocks.1.mixer.in_proj" in text
    assert f"{out}/checkpoints/step-00000000" in text and "\n" not in text
    for path in (out / "checkpoints").glob("*/state.safetensors"):
        from safetensors.torch import load_file

        assert all(torch.isfinite(t).all() for t in load_file(path).values() if t.is_floating_point())


@pytest.mark.rel
@pytest.mark.slow
def test_p11_a_rollback_continues_with_another_order_and_lower_rates(tmp_path):
    out = tmp_path / "run"
    recipe = runs.tiny(max_consecutive_skips=2, max_rollbacks=1, save_every=1)
    # Two non-finite steps in the second epoch, then finite ones.
    process = runs.start(recipe, out, before=(faults.poison_epoch, 1, 2))
    assert runs.finish(process) == [0]
    trace = runs.trace(out)
    assert (trace.progress["num_rollbacks"], trace.progress["lr_factor"]) == (1, 0.5)
    assert trace.progress["step"] == 9 and trace.progress["num_skipped"] == 2
    steps = [row["step"] for row in trace.metrics if row["kind"] == "training"]
    assert steps == list(range(1, 10)), "the abandoned steps are out of the log"


@pytest.mark.rel
@pytest.mark.slow
def test_p11_a_planted_learning_rate_spike_recovers(tmp_path):
    out = tmp_path / "run"
    recipe = runs.tiny(max_consecutive_skips=2, max_rollbacks=3, clip_grad=None, save_every=2, ema_decay=None)
    process = runs.start(recipe, out, before=(faults.spike, 5, 1e38))
    assert runs.finish(process) == [0]
    trace = runs.trace(out)
    assert trace.progress["num_rollbacks"] >= 1
    assert all(row["loss"] is not None for row in trace.metrics if row["kind"] == "training" and row["step"] > 7)


@pytest.mark.rel
@pytest.mark.slow
def test_p11_two_processes_roll_back_together(tmp_path):
    out = tmp_path / "run"
    recipe = runs.tiny(max_consecutive_skips=2, max_rollbacks=1, save_every=1)
    fault = (faults.poison_epoch, 1, 2)
    assert runs.finish(*runs.start_group(recipe, out, world=2, befores={0: fault, 1: fault})) == [0, 0]
    assert runs.finish(runs.start(recipe, tmp_path / "one", before=fault)) == [0]
    assert runs.trace(out) == runs.trace(tmp_path / "one")


def test_a_non_finite_state_is_a_separate_error():
    assert NonFiniteError.exit_code == 4
