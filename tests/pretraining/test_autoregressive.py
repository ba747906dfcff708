"""Autoregressive pre-training: no token of the future is read; runs resume and can be fine-tuned in both directions."""

import importlib

import pytest
import torch

import mambar
from mambar.errors import InputError, RecipeError
from mambar.pretraining.autoregressive import AutoregressiveOptions, NextClusterModel, cluster_order
from training import faults, runs

TASK = {"cluster": 1, "decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 2}
# Registers the task in a process that a test starts.
REGISTER = (importlib.import_module, "mambar.pretraining.autoregressive")
CONFIG = {**runs.tiny().config, "mixer": "forward"}


def recipe(**changes):
    fields = {"config": CONFIG, "task_options": TASK, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    return runs.tiny(task="autoregressive", **fields | changes)


def model(img_size=16, **config):
    torch.manual_seed(0)
    fields = {**CONFIG, "patch_size": 2, "num_classes": 0, "img_size": img_size, **config}
    backbone = mambar.create_model("mambar_tiny_patch16_224", **fields)
    options = AutoregressiveOptions(cluster=2, decoder_dim=16, decoder_heads=2, decoder_depth=2)
    return NextClusterModel(backbone, options).eval()


def test_clusters_follow_in_raster_order():
    assert cluster_order((4, 4), 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    with pytest.raises(InputError, match="4 × 6 patches cannot be cut into two or more clusters of 4 × 4"):
        cluster_order((4, 6), 4)


@pytest.mark.parametrize("placement", ["evenly", "middle", "begin", "end"])
@pytest.mark.parametrize("num_registers", [1, 2, 5])
def test_a_prediction_depends_on_the_clusters_before_it_only(placement, num_registers):
    changes = {"placement": placement, "num_registers": num_registers, "register_reduction": 1}
    net = model(**changes)
    images = torch.randn(1, 3, 16, 16)
    predicted, target = net(images)
    assert predicted.shape == target.shape == (1, 15, 4, 12)
    for cluster in (0, 4, 9, 15):
        rows, cols = 4 * (cluster // 4), 4 * (cluster % 4)
        changed = images.clone()
        changed[:, :, rows : rows + 4, cols : cols + 4] += torch.randn(3, 4, 4)
        same = (net(changed)[0] == predicted).flatten(2).all(2)[0]
        # Prediction number k is that of cluster k + 1.
        assert same[:cluster].all() and not same[cluster:].any()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("autoregressive") / "run"
    runs.here(recipe(), out)
    return out


@pytest.mark.rel
def test_a_killed_run_resumes_bit_identically(straight, tmp_path):
    out = tmp_path / "run"
    kill = (faults.all_of, REGISTER, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(recipe(), out, before=kill)) == [-9]
    assert runs.finish(runs.start(recipe(), out, before=REGISTER, resume=True)) == [0]
    assert runs.trace(out) == runs.trace(straight)


def test_every_trained_parameter_has_a_gradient():
    net = model()
    predicted, target = net(torch.randn(2, 3, 16, 16))
    (predicted - target).square().mean().backward()
    missing = [name for name, each in net.named_parameters() if each.requires_grad and each.grad is None]
    assert not missing


def test_fine_tuning_starts_both_directions_from_the_one(straight, tmp_path):
    out = tmp_path / "run"
    fields = {"model": "same", "config": {"mixer": "bidirectional"}, "start_from": str(straight)}
    runs.here(runs.tiny(epochs=1, max_steps=1, lr=1e-9, min_lr=0.0, warmup_lr=0.0, **fields), out)
    pretrained, tuned = mambar.load(straight).state_dict(), mambar.load(out).state_dict()
    compared = 0
    for name, value in tuned.items():
        source = name.replace("backward_scan", "forward_scan")
        if source.startswith("blocks.") and source in pretrained:
            torch.testing.assert_close(value, pretrained[source], atol=1e-6, rtol=0)
            compared += "backward_scan" in name
    assert compared == 2 * 7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config": runs.tiny().config}, "config.mixer=forward"),
        ({"task_options": {**TASK, "cluster": 2}}, "2 × 2 patches cannot be cut"),
        ({"task_options": {**TASK, "decoder_depth": 3}}, "decoder_depth=3 exceeds the 2 blocks"),
        ({"task_options": {"decoder_dims": 3}}, "did you mean .decoder_dim"),
        ({"task_options": {"decoder_dim": 20}}, "multiple of 4 times decoder_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises((InputError, RecipeError), match=message):
        runs.here(recipe(**changes), tmp_path / "run")
