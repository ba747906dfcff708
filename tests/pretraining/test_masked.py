"""Masked pre-training: the loss is that of the masked patches, whose pixels nothing reads; runs resume."""

import importlib

import pytest
import torch

import mambar
from mambar.errors import InputError, RecipeError
from mambar.pretraining.masked import MaskedOptions, MaskedPatchModel, MaskedTask
from mambar.pretraining.pixel_decoder import normalized_pixels
from training import faults, runs

TASK = {"mask_ratio": 0.5, "decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 2}
# Registers the task in a process that a test starts.
REGISTER = (importlib.import_module, "mambar.pretraining.masked")


def recipe(**changes):
    fields = {"task_options": TASK, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    return runs.tiny(task="masked", **fields | changes)


def model(mask_ratio=0.75, **config):
    torch.manual_seed(0)
    fields = {**runs.tiny().config, "img_size": 16, "num_classes": 0, **config}
    backbone = mambar.create_model("mambar_tiny_patch16_224", **fields)
    return MaskedPatchModel(backbone, MaskedOptions(**{**TASK, "mask_ratio": mask_ratio})).eval()


def changed_patch(images, number):
    rows, cols = 4 * (number // 4), 4 * (number % 4)
    changed = images.clone()
    changed[:, :, rows : rows + 4, cols : cols + 4] += torch.randn(3, 4, 4)
    return changed


@pytest.mark.parametrize("placement", ["evenly", "middle", "begin", "end"])
@pytest.mark.parametrize("mixer", ["bidirectional", "forward"])
def test_no_masked_pixel_is_read_and_every_visible_one_is(placement, mixer):
    net = model(placement=placement, mixer=mixer)
    images = torch.randn(1, 3, 16, 16)
    masked = net._masked(1, 16)[0].tolist()
    predicted, target = net(images)
    assert predicted.shape == target.shape == (1, 12, 48) and len(set(masked)) == 12
    for number in range(16):
        found, changed_target = net(changed_patch(images, number))
        same = (changed_target == target).flatten(2).all(2)[0].tolist()
        if number in masked:
            assert torch.equal(found, predicted)
            assert [masked[place] for place, equal in enumerate(same) if not equal] == [number]
        else:
            # Its own pixels are no target. A causal mixer may stand before every masked patch, but the decoder reads.
            assert not torch.equal(found, predicted) and all(same)


def test_the_loss_is_that_of_the_masked_patches_only():
    net = model(mask_ratio=0.5)
    made = recipe()
    task = MaskedTask(made, made.stages[0], classes="0123456789")
    images = torch.randn(3, 3, 16, 16)

    class Images(dict):
        images = property(lambda self: self["images"])

    loss = task.loss(net, Images(images=images))["loss"]
    masked, (predicted, _), pixels = net._masked(3, 16), net(images), normalized_pixels(images, 4)
    errors = [
        (predicted[image, place] - pixels[image, number]).square().mean()
        for image in range(3)
        for place, number in enumerate(masked[image].tolist())
    ]
    assert len(errors) == 24
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_masks_are_drawn_again_in_training_and_fixed_in_evaluation():
    net = model()
    assert torch.equal(net._masked(4, 16), net._masked(4, 16))
    net.train()
    first, second = net._masked(64, 16), net._masked(64, 16)
    assert not torch.equal(first, second) and first.flatten().bincount().min() > 0
    assert model(mask_ratio=0.01)._masked(1, 16).shape == (1, 1)
    assert model(mask_ratio=0.999)._masked(1, 16).shape == (1, 15)
    with pytest.raises(InputError, match="one patch cannot be masked"):
        net._masked(1, 1)


def test_every_trained_parameter_has_a_gradient():
    net = model()
    predicted, target = net(torch.randn(2, 3, 16, 16))
    (predicted - target).square().mean().backward()
    missing = [name for name, each in net.named_parameters() if each.requires_grad and each.grad is None]
    assert not missing


@pytest.mark.rel
def test_a_killed_run_resumes_bit_identically(tmp_path):
    runs.here(recipe(), tmp_path / "straight")
    kill = (faults.all_of, REGISTER, (faults.die_at, "save", 4))
    assert runs.finish(runs.start(recipe(), tmp_path / "run", before=kill)) == [-9]
    assert runs.finish(runs.start(recipe(), tmp_path / "run", before=REGISTER, resume=True)) == [0]
    assert runs.trace(tmp_path / "run") == runs.trace(tmp_path / "straight")
    # The final weights are those of the backbone, which fine-tuning loads.
    assert mambar.load(tmp_path / "run").num_classes == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task_options": {**TASK, "mask_ratio": 1}}, "mask_ratio=1.0 is not allowed; it takes above 0, below 1"),
        ({"task_options": {**TASK, "decoder_depth": 3}}, "decoder_depth=3 exceeds the 2 blocks"),
        ({"task_options": {"mask_ration": 0.5}}, "did you mean .mask_ratio"),
        ({"config": {**runs.tiny().config, "patch_size": 8, "num_registers": 1}}, "one patch cannot be masked"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises((InputError, RecipeError), match=message):
        runs.here(recipe(**changes), tmp_path / "run")
