"""Interventions on networks whose prediction is known: by outliers, or by registers that patches do not reach."""

import pytest
import torch

from mambar.analysis.measure.norms import token_norms
from mambar.analysis.measure.register_neurons import evaluate_added_registers
from mambar.analysis.measure.token_changes import ChangedOutliers
from mambar.errors import InputError
from mambar.models import TokenModel, VisionMamba, VisionMambaConfig

INF = float("inf")
LIMITS = (2.0, INF)
# One patch of each image is an outlier: 100 times the first direction, its sign is that of the image's class.
LABELS = torch.tensor([0, 1] * 4)
IMAGES = torch.zeros(8, 1, 8, 8)
for number in range(8):
    row, col = divmod(number, 4)
    IMAGES[number, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = 1.0 - 2.0 * LABELS[number]


def planted(head="avg", **fields):
    """A network whose blocks add nothing, and whose classes are the signs of the first direction."""
    config = VisionMambaConfig(
        img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_registers=1, placement="middle", num_classes=2
    )
    model = VisionMamba(config.replace(head=head, proj_bias=True, **fields)).eval()
    with torch.no_grad():
        for parameter in [*model.pos_embed.parameters(), *model.registers.parameters()]:
            parameter.zero_()
        model.registers.embedding[..., 1] = 1.0
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.weight[0] = 25.0
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.proj.bias[1] = 1.0
        for block in model.blocks:
            block.mixer.out_proj.weight.zero_()
            block.mixer.out_proj.bias.zero_()
        model.head.classifier.weight.zero_()
        model.head.classifier.weight[0, 0], model.head.classifier.weight[1, 0] = 1.0, -1.0
        model.head.classifier.bias.zero_()
    return model


def top1(model, *changes, limits=LIMITS):
    variants = {"unchanged": model}
    variants |= {f"{name} {random}": ChangedOutliers(model, limits, name, random=random) for name, random in changes}
    return [found.top1 for found in evaluate_added_registers(variants, [(IMAGES, LABELS)])]


def test_exchange_changes_a_prediction_that_outliers_make():
    # Neighbors have the other class, so every prediction is wrong; the final norm removes the size of a token.
    found = top1(planted(), ("exchanged", False), ("exchanged", True), ("clamped", False), ("clamped", True))
    assert found == [1.0, 0.0, 1.0, 1.0, 1.0]


def test_clamping_changes_a_prediction_that_later_layers_outweigh():
    model = planted()
    with torch.no_grad():
        # Against 50 in another direction, 100 in the first one are visible and 2 are not.
        model.blocks[1].mixer.out_proj.bias[2] = 50.0
        model.head.classifier.bias[1] = 0.05
    unchanged, clamped, random = top1(model, ("clamped", False), ("clamped", True))
    # Clamped, all images are of the second class.
    assert (unchanged, clamped, random) == (1.0, 0.5, 1.0)


def test_registers_that_patches_do_not_reach_predict_the_same():
    model = planted(head="token")
    expected = model(IMAGES)
    for change in ("clamped", "exchanged"):
        assert torch.equal(ChangedOutliers(model, LIMITS, change)(IMAGES), expected)


@pytest.fixture
def network():
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=16, patch_size=4, embed_dim=16, depth=3, num_registers=3, num_classes=3)
    return VisionMamba(config.replace(register_reduction=1)).eval()


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_no_norm_is_above_the_threshold_after_clamping(network, images):
    norms = token_norms(network, images)
    limits = [float(layer.median()) for layer in norms]
    model = ChangedOutliers(network, limits, "clamped")
    assert isinstance(model, TokenModel)
    changed, (first,) = token_norms(model, images), network.tokens(images, [0])
    for layer, limit in zip(changed, limits, strict=True):
        assert layer.max() <= limit * (1 + 1e-5)
    found = model.tokens(images, [0])[0]
    below = norms[0].flatten(1) <= limits[0]
    assert torch.equal(found.patches[below], first.patches[below])
    assert torch.equal(found.registers, first.registers)
    cosine = torch.cosine_similarity(found.patches, first.patches, dim=2)
    assert torch.allclose(cosine, torch.ones_like(cosine))
    assert model.tokens(images, [-1], tensor="normed")[0].patches.shape == (4, 16, 16)


@pytest.mark.parametrize("change", ["clamped", "exchanged"])
def test_the_control_changes_as_many_other_tokens_of_each_image(network, images, change):
    before = network.tokens(images, [0])[0].patches
    norms = before.norm(dim=2)
    limit = float(norms.detach().flatten().sort().values[-7])
    model = ChangedOutliers(network, [limit, INF, INF], change, random=True)
    changed = (model.tokens(images, [0])[0].patches != before).any(2)
    outliers = norms > limit
    assert outliers.sum() == 6 and not (changed & outliers).any()
    assert torch.equal(changed.sum(1), outliers.sum(1))
    if change == "clamped":
        scales = model.tokens(images, [0])[0].patches.norm(dim=2)[changed] / norms[changed]
        assert torch.allclose(scales.sort().values, (limit / norms[outliers]).sort().values)


def test_the_control_changes_the_same_tokens_in_every_layer():
    model = planted()
    changed = ChangedOutliers(model, (2.0, 2.0), "clamped", random=True)
    before, after = (each.tokens(IMAGES, [-1])[0].patches for each in (model, changed))
    assert (before != after).any(2).sum(1).tolist() == [1] * 8


def test_without_outliers_nothing_changes(network, images):
    for change in ("clamped", "exchanged"):
        model = ChangedOutliers(network, [INF] * 3, change, random=True)
        assert torch.allclose(model(images), network(images), atol=1e-6)


def test_one_image_has_nobody_to_exchange_with(network, images):
    model = ChangedOutliers(network, [0.0] * 3, "exchanged")
    assert torch.allclose(model(images[:1]), network(images[:1]), atol=1e-6)


def test_wrong_choices_are_refused(network, images):
    with pytest.raises(InputError, match="change='removed' is not known; choose one of clamped, exchanged"):
        ChangedOutliers(network, [INF] * 3, "removed")
    with pytest.raises(InputError, match="2 thresholds for 3 layers; give one for each layer"):
        ChangedOutliers(network, [INF] * 2, "clamped")
    with pytest.raises(InputError, match="got Linear"):
        ChangedOutliers(torch.nn.Linear(2, 2), [INF], "clamped")
    with pytest.raises(InputError, match="choose residual or normed"):
        ChangedOutliers(network, [INF] * 3, "clamped").tokens(images, tensor="mixer")
