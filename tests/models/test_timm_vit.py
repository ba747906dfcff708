"""timm's transformers through the same questions as ours."""

import pytest
import torch

from mambar.errors import InputError
from mambar.models import TokenModel
from mambar.models.timm_vit import create_timm_vit


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_pwee_patch16_reg1_gap_256", 1)],
)
def test_tokens_are_those_of_timm(name, prefix):
    model = create_timm_vit(name, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    assert isinstance(model, TokenModel)
    with torch.no_grad():
        first, last = model.tokens(images, [0, -1])
        (added,) = model.tokens(images, [model.num_layers - 1], tensor="mixer")
        (normed,) = model.tokens(images, [-1], tensor="normed")
        (before,) = model.tokens(images, [-2])
        expected = model.network.forward_features(images)
    assert first.grid == (4, 4) and first.registers.shape == (2, prefix, model.dim)
    assert torch.equal(torch.cat([normed.registers, normed.patches], dim=1), expected)
    assert torch.allclose(before.patches + added.patches, last.patches, atol=1e-5)
    assert len(model.tokens(images)) == model.num_layers
    assert not any(block._forward_hooks for block in model.blocks)


def test_image_size_resizes_the_positions():
    model = create_timm_vit("deit_tiny_patch16_224", image_size=(32, 48))
    assert model.tokens(torch.rand(1, 3, 32, 48), [-1])[0].grid == (2, 3)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_other_networks_are_refused(name):
    with pytest.raises(InputError, match="no plain transformer"):
        create_timm_vit(name)


def test_unknown_names_and_layers_are_refused():
    with pytest.raises(InputError, match="did you mean timm/deit_tiny_patch16_224"):
        create_timm_vit("deit_tiny_patch16_225")
    with pytest.raises(InputError, match="layers 0 to 11"):
        create_timm_vit("deit_tiny_patch16_224").tokens(torch.rand(1, 3, 224, 224), [12])
