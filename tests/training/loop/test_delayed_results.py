"""P4 and P11 with results that are read while the next step runs, as on a GPU, and replayed from CUDA graphs."""

import signal
import time
from pathlib import Path

import pytest
import torch

from mambar.hub import create_model
from mambar.training.distributed.process_group import ProcessGroup
from mambar.training.loop.ema import Ema
from mambar.training.loop.optim import Optimizer, param_groups
from mambar.training.loop.precision import LossScale, PrecisionPolicy
from mambar.training.loop.signals import StopSignals
from mambar.training.loop.update import StepKeys, TrainStep
from mambar.training.recipe import Stage
from training import faults, runs
from training.loop.test_update import Poisoned, batches, make_task, make_updater, same, snapshot

DELAYED = (faults.delayed_results,)


@pytest.mark.rel
@pytest.mark.parametrize("changes", [{}, pytest.param({"clip_grad": 0.05, "save_every": 100}, marks=pytest.mark.slow)])
def test_p4_a_delayed_run_is_bit_identical(tmp_path, unbroken, changes):
    out = tmp_path / "run"
    expected = unbroken
    if changes:
        assert runs.finish(runs.start(runs.tiny(**changes), tmp_path / "plain")) == [0]
        expected = runs.trace(tmp_path / "plain")
    assert runs.finish(runs.start(runs.tiny(**changes), out, before=DELAYED)) == [0]
    assert runs.trace(out) == expected


@pytest.mark.rel
@pytest.mark.slow
def test_p4_a_signal_stops_a_delayed_run_which_resumes(tmp_path, unbroken):
    out = tmp_path / "run"
    process = runs.start(runs.tiny(), out, before=(faults.all_of, DELAYED, (faults.slow_steps, 0.2)))
    while runs.steps_in(out) < 3 and process.exitcode is None:
        time.sleep(0.01)
    process.terminate()
    assert runs.finish(process) == [128 + signal.SIGTERM]
    assert runs.finish(runs.start(runs.tiny(), out, resume=True, before=DELAYED)) == [0]
    assert runs.trace(out) == unbroken


@pytest.mark.rel
@pytest.mark.slow
@pytest.mark.parametrize("save_every", [1, 2, 100])
def test_p11_a_delayed_run_rolls_back_to_the_same_state(tmp_path, save_every):
    recipe = runs.tiny(max_consecutive_skips=2, max_rollbacks=1, save_every=save_every)
    poison = (faults.poison_epoch, 1, 2)
    assert runs.finish(runs.start(recipe, tmp_path / "plain", before=poison)) == [0]
    # One more step is started, and dropped, before the rollback; `poison_epoch` counts poisoned calls.
    assert runs.finish(runs.start(recipe, tmp_path / "run", before=(faults.all_of, DELAYED, poison))) == [0]
    assert runs.trace(tmp_path / "run") == runs.trace(tmp_path / "plain")


@pytest.mark.rel
@pytest.mark.parametrize("kind", ["loss", "gradient", "activation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_p11_a_bad_number_changes_nothing_without_a_look_at_it(kind, value):
    updater = make_updater(clip_grad=1.0)
    updater.is_delayed = True
    assert one_step(updater).is_finite
    before, good = snapshot(updater), updater.task
    updater.task = make_task(Poisoned)
    updater.task.kind, updater.task.value = kind, value
    assert not one_step(updater, 1).is_finite
    assert same(before, snapshot(updater))
    updater.task = good
    assert one_step(updater, 2).is_finite and not same(before, snapshot(updater))


def test_where_the_result_is_needed_it_is_not_delayed():
    class Follows(type(make_updater().task)):
        def after_step(self, model, progress, outputs):
            """Reads the weights."""

    updater = make_updater()
    updater.process_group = ProcessGroup(device=torch.device("cuda"))
    assert updater._can_be_delayed()
    updater.scale = LossScale(active=True)
    assert not updater._can_be_delayed()
    updater.scale = LossScale(active=False)
    updater.model.register_buffer("moments", torch.zeros(1))
    assert not updater._can_be_delayed(), "the EMA copies buffers, which the next forward pass changes"
    del updater.model.moments
    updater.task = make_task(Follows)
    assert not updater._can_be_delayed()


def test_another_loss_declares_its_own_fields():
    class Other(type(make_updater().task)):
        def loss(self, model, batch):
            return super().loss(model, batch)

    class Named(type(make_updater().task)):
        """The same loss."""

    assert not Other.cuda_graph_fields and Named.cuda_graph_fields == ("images", "targets")


# On a GPU


def one_step(updater, number=0):
    keys = StepKeys(seed=1, epoch=0, step=number)
    shards = batches(updater.num_shards, size=12 * updater.num_shards, seed=number)
    return updater(shards, keys, lr=1e-3, stop_signals=StopSignals(), progress=None)


def on_gpu(*, cuda_graphs, precision="fp32", shards=1, grad_accum_steps=1, task=None, change=None):
    """As `make_updater`, with every kind of random number."""
    torch.manual_seed(0)
    config = {"img_size": 8, "num_classes": 5, "patch_size": 4, "embed_dim": 32, "depth": 3}
    model = create_model(
        "mambar_tiny_patch16_224",
        **config,
        num_registers=2,
        register_reduction=2,
        drop_path_rate=0.3,
        proj_drop_rate=0.1,
    ).cuda()
    if change is not None:
        change(model)
    stage = Stage(lr=1e-3)
    return TrainStep(
        model=model,
        forward=model,
        task=task or make_task(type(make_updater().task)),
        optimizer=Optimizer(param_groups(model, stage), stage),
        ema=Ema(model, 0.9),
        scale=LossScale(active=precision == "fp16"),
        precision=PrecisionPolicy.of(precision, torch.device("cuda")),
        process_group=ProcessGroup(device=torch.device("cuda")),
        num_shards=shards,
        grad_accum_steps=grad_accum_steps,
        clip_grad=0.5,
        cuda_graphs=cuda_graphs,
    )


@pytest.mark.gpu
@pytest.mark.rel
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shards, grad_accum_steps", [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_replayed_passes_are_bit_identical_to_plain_ones(precision, shards, grad_accum_steps):
    options = {"precision": precision, "shards": shards, "grad_accum_steps": grad_accum_steps}
    plain, replayed = on_gpu(cuda_graphs=False, **options), on_gpu(cuda_graphs=True, **options)
    assert replayed._graphs is not None and plain._graphs is None
    assert replayed.is_delayed == (precision != "fp16")
    for number in range(6):
        one, two = one_step(plain, number), one_step(replayed, number)
        assert (one.scalars, one.grad_norm) == (two.scalars, two.grad_norm), number
    assert len(replayed._graphs._graphs) == 1
    assert same(snapshot(plain), snapshot(replayed))


@pytest.mark.gpu
@pytest.mark.rel
def test_p11_a_replayed_step_that_is_not_finite_changes_nothing():
    updater = on_gpu(cuda_graphs=True)
    for number in range(4):
        assert one_step(updater, number).is_finite
    before = snapshot(updater)

    def poisoned(shard, seed, epoch):
        prepared = type(updater.task).prepare(updater.task, shard, seed=seed, epoch=epoch)
        return prepared.replace(images=prepared.images * float("inf"))

    updater.task.prepare = poisoned
    assert not one_step(updater, 4).is_finite
    assert same(before, snapshot(updater))
    del updater.task.prepare
    assert one_step(updater, 5).is_finite and not same(before, snapshot(updater))


def add_hook(model):
    model.blocks[1].mixer.register_forward_hook(lambda module, inputs, output: output)


def checkpoint_blocks(model):
    model.set_grad_checkpointing(True)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "change, reason", [(add_hook, "blocks.1.mixer has a hook"), (checkpoint_blocks, "grad_checkpointing=true")]
)
def test_what_forbids_a_graph_is_named_in_one_line(caplog, change, reason):
    updater = on_gpu(cuda_graphs=True, change=change)
    [line] = [record.message for record in caplog.records]
    assert reason in line and "\n" not in line
    plain = on_gpu(cuda_graphs=False, change=change)
    for number in range(4):
        assert one_step(updater, number).scalars == one_step(plain, number).scalars


@pytest.mark.gpu
def test_a_task_without_fields_runs_without_graphs(caplog):
    updater = on_gpu(cuda_graphs=True, task=make_task(Poisoned))
    assert "does not declare `cuda_graph_fields`" in caplog.text and updater._graphs is None


@pytest.mark.gpu
@pytest.mark.rel
@pytest.mark.slow
def test_p4_a_run_on_a_gpu_is_the_same_with_graphs_and_after_kills(tmp_path: Path):
    recipe, device = runs.tiny(precision="bf16", grad_accum_steps=2), {"device": "cuda"}
    plain = runs.start(recipe.replace(cuda_graphs=False), tmp_path / "plain", **device)
    assert runs.finish(plain, runs.start(recipe, tmp_path / "whole", **device)) == [0, 0]
    out = tmp_path / "run"
    killed = runs.start(recipe, out, before=(faults.die_at, "epoch edge", 3), **device)
    assert runs.finish(killed) == [-signal.SIGKILL]
    assert runs.finish(runs.start(recipe, out, resume=True, **device)) == [0]
    assert runs.trace(out) == runs.trace(tmp_path / "whole") == runs.trace(tmp_path / "plain")
