"""timm's vision transformers as backbones."""

import pytest
import torch

from mambar.analysis import token_norms
from mambar.errors import InputError
from mambar.models import Backbone
from mambar.models.timm_vit import TimmViT, create_timm_vit

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
# Name → tokens in front of the patches: class, distillation, registers.
PREFIX = {
    "vit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
    "vit_base_patch16_gap_224": 0,
    "beit_base_patch16_224": 1,
}


def small(name, **fields):
    torch.manual_seed(0)
    return create_timm_vit(name, img_size=56 if "14" in name else 64, num_classes=7, **{**SMALL, **fields}).eval()


def images(model, rows=4, cols=4):
    return torch.randn(
        2, 3, rows * model.patch_size, cols * model.patch_size, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", PREFIX)
def test_tokens_are_the_streams_of_the_blocks(name):
    model = small(name)
    assert isinstance(model, Backbone)
    assert (model.num_layers, model.embed_dim, model.num_registers, model.num_classes) == (3, 48, PREFIX[name], 7)
    seen = {}
    for index, block in enumerate(model.model.blocks):
        block.register_forward_hook(lambda _, given, out, index=index: seen.update({index: (given[0], out)}))
    pictures = images(model)
    with torch.no_grad():
        logits = model(pictures)
        streams = model.tokens(pictures)
        added = model.tokens(pictures, tensor="mixer")
        normed = model.tokens(pictures, tensor="normed")
        assert logits.shape == (2, 7)
        for index in range(3):
            given, out = seen[index]
            for found, expected in (
                (streams[index], out),
                (added[index], out - given),
                (normed[index], model.model.norm(out)),
            ):
                assert found.grid == (4, 4) and found.registers.shape == (2, PREFIX[name], 48)
                assert torch.equal(torch.cat([found.registers, found.patches], dim=1), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_any_grid(name):
    model = small(name)
    with torch.no_grad():
        norms = token_norms(model, images(model, 3, 5), [2, 0, -1])
    assert norms.shape == (3, 2, 3, 5)
    assert torch.equal(norms[0], norms[2]) and not torch.equal(norms[0], norms[1])


def test_layers_in_the_order_asked_and_no_further():
    model = small("vit_tiny_patch16_224")
    ran = []
    for index, block in enumerate(model.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    one, zero = model.tokens(images(model), [1, 0])
    assert ran == [0, 1]
    assert torch.equal(zero.patches, model.tokens(images(model), [0])[0].patches) and one is not zero
    assert model.tokens(images(model), []) == []


def test_preprocessing_is_timms():
    seen = small("vit_small_patch14_reg4_dinov2").preprocessing
    assert (seen.img_size, seen.crop_pct, seen.interpolation) == (56, 1.0, "bicubic")


@pytest.mark.wrong_shapes
def test_what_cannot_be_asked_is_named():
    model = small("vit_tiny_patch16_224")
    with pytest.raises(InputError, match="layers 0 to 2"):
        model.tokens(images(model), [3])
    with pytest.raises(InputError, match="residual, mixer or normed"):
        model.tokens(images(model), tensor="attention")
    with pytest.raises(InputError, match="no model 'deit_bose"):
        create_timm_vit("deit_bose_patch16_224")
    with pytest.raises(InputError, match="ResNet is no plain vision transformer"):
        create_timm_vit("resnet18")
    with pytest.raises(InputError, match="Linear is no plain"):
        TimmViT(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_reset_classifier_changes_model_and_configuration(name):
    model = small(name, drop_path_rate=0.2)
    model.reset_classifier(4)
    assert (model.num_classes, model.get_classifier().out_features) == (4, 4)
    assert model.config.arguments["num_classes"] == 4
    assert model.get_classifier().in_features == model.head_hidden_size


def test_parameter_names_of_decay_and_layers():
    from timm.models import group_parameters

    model = small("deit_tiny_patch16_224")
    names = {name for name, _ in model.named_parameters()}
    assert {"model.pos_embed", "model.cls_token"} <= model.no_weight_decay() & names
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["model.pos_embed"] == 0 and layers["model.blocks.1.attn.qkv.weight"] == 2
    assert set(layers) == names
