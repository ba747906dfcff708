import json
import math
from dataclasses import asdict

import pytest
import torch

from mambar.analysis.measure.outliers import FixedThreshold, TopShare
from mambar.analysis.measure.register_neurons import evaluate_added_registers, find_register_neurons, register_variants
from mambar.analysis.measure.token_changes import ChangedOutliers
from mambar.errors import InputError
from mambar.models import VisionMamba, VisionMambaConfig

CONFIG = VisionMambaConfig(
    img_size=16, patch_size=4, embed_dim=16, depth=3, num_registers=1, placement="middle", head="token", num_classes=3
)
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vim():
    torch.manual_seed(0)
    return VisionMamba(CONFIG).eval()


@pytest.fixture
def planted(vim):
    """Channel 3 of layer 1 writes loudly, in proportion to how active it is."""
    with torch.no_grad():
        vim.blocks[1].mixer.out_proj.weight[:, 3] *= 1e6
    return vim


def test_the_channel_that_writes_outliers_is_found(planted):
    found = find_register_neurons(planted, IMAGES.split(2), count=2, rule=TopShare(share=0.1))
    assert found.channels[0] == (1, 3) and found.scores[0] > 100 * abs(found.scores[1])
    assert found.of_layer(1)[0] == 3


def test_moving_it_takes_the_long_tokens_out_of_the_image(planted):
    batches = [(IMAGES, torch.tensor([0, 1, 2, 0]))]
    neurons = find_register_neurons(planted, [IMAGES], count=1, rule=TopShare(share=0.1))
    results = evaluate_added_registers(register_variants(planted, neurons, 2), batches, rule=TopShare(share=0.1))
    trained, moved = results[0], results[-1]
    assert trained.name == "as trained" and moved.name == "2 added (zero), 1 channels moved"
    assert moved.maximum < trained.maximum / 100 and moved.register_median > moved.maximum
    assert trained.outlier_share == pytest.approx(0.1, abs=0.02) and moved.outlier_share == 0
    assert len(results) == 5 and results[0].num_images == 4
    json.dumps([asdict(result) for result in results])


def test_accuracy_counts_labelled_images_only(vim):
    logits = vim(IMAGES)
    labels = logits.argmax(1)
    assert evaluate_added_registers({"x": vim}, [(IMAGES, labels)])[0].top1 == 1.0
    labels[0], labels[1] = -1, (labels[1] + 1) % 3
    assert evaluate_added_registers({"x": vim}, [(IMAGES, labels)])[0].top1 == pytest.approx(2 / 3)
    assert math.isnan(evaluate_added_registers({"x": vim}, [(IMAGES, labels * 0 - 1)])[0].top1)


@pytest.mark.parametrize("head", ["token", "avg", "registers"])
def test_accuracy_is_that_of_forward(head):
    torch.manual_seed(0)
    fields = {"num_registers": 2, "placement": "evenly", "register_reduction": 1}
    network = VisionMamba(CONFIG.replace(head=head, **fields)).eval()
    variants = register_variants(network, None, 2)
    variants["changed"] = ChangedOutliers(network, [3.0] * 3, "clamped")
    for name, model in variants.items():
        found = evaluate_added_registers({name: model}, [(IMAGES, model(IMAGES).argmax(1))])
        assert found[0].top1 == 1.0


def test_without_outliers_there_is_nothing_to_move(vim):
    with pytest.raises(InputError, match="nothing to move"):
        find_register_neurons(vim, [IMAGES], rule=FixedThreshold(value=1e9))
