"""From a token model to logits at the image's size."""

import pytest
import torch

from mambar.errors import InputError
from mambar.segmentation import DECODERS, Segmenter, SegmenterConfig


def segmenter(backbone, **changes):
    return Segmenter(backbone, **({"num_classes": 5, "channels": 8, "dropout": 0.0} | changes))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 50), (5, 9)])
def test_logits_at_any_size(backbone, decoder, size):
    model = segmenter(backbone, decoder=decoder)
    assert model(torch.randn(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("broadcast", [False, True])
def test_mamba_learns_with_every_trainable_parameter(tiny_mamba, broadcast):
    model = segmenter(tiny_mamba, broadcast=broadcast)
    model(torch.randn(1, 3, 32, 40)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    # The classifier, the head in front of it and the final norm are not read.
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.norm.weight" in frozen and "backbone.head.classifier.weight" in frozen
    assert not any(name.startswith("backbone.blocks") for name in frozen)


def test_registers_stay_in_the_sequence(tiny_mamba):
    model = segmenter(tiny_mamba)
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    with torch.no_grad():
        tiny_mamba.registers.embedding.add_(1.0)
    assert not torch.allclose(before, model(images))


def test_broadcast_starts_as_nothing_and_then_reads_registers(tiny_mamba):
    images = torch.randn(1, 3, 32, 32)
    torch.manual_seed(1)
    plain = segmenter(tiny_mamba)
    torch.manual_seed(1)
    model = segmenter(tiny_mamba, broadcast=True)
    state = {name: value for name, value in plain.state_dict().items()}
    model.load_state_dict(state, strict=False)
    torch.testing.assert_close(model(images), plain(images))
    torch.nn.init.normal_(model.broadcast.project.weight)
    assert not torch.allclose(model(images), plain(images))


def test_default_layers_are_the_published_ones():
    assert SegmenterConfig().layer_indices(24) == (5, 11, 17, 23)
    assert SegmenterConfig().layer_indices(48) == (11, 23, 35, 47)
    assert SegmenterConfig(decoder="linear").layer_indices(24) == (23,)
    assert SegmenterConfig().layer_indices(2) == (0, 0, 1, 1)


def test_shallow_backbone_gives_layers_twice(make_backbone):
    assert segmenter(make_backbone(depth=2))(torch.randn(1, 3, 32, 32)).shape == (1, 5, 32, 32)


def test_padding_changes_only_what_is_near(backbone):
    """Logits of whole patches are cut, not squeezed, where an image is no multiple of the patch."""
    model = segmenter(backbone, decoder="linear").eval()
    images = torch.randn(1, 3, 32, 44)
    whole = model(images[..., :40])
    padded = model(images)
    torch.testing.assert_close(padded[..., :32], whole[..., :32])


def test_frozen_backbone_keeps_no_graph(backbone):
    model = segmenter(backbone)
    model.freeze_backbone()
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_no_weight_decay_names(tiny_mamba):
    exempt = segmenter(tiny_mamba).no_weight_decay()
    assert exempt == {"backbone.pos_embed.weight", "backbone.registers.embedding", "backbone.registers.position"}


def test_config_round_trip():
    config = SegmenterConfig(num_classes=3, layers=(1, 2, 3, 4))
    assert SegmenterConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 1)}, "takes 4 layers"),
        ({"layers": (0, 1, 2, 9)}, "layers 0 to 3"),
        ({"decoder": "unet"}, "choose one of upernet, linear"),
        ({"norm": "layer"}, "choose one of group, batch"),
        ({"num_classes": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_bad_choices(backbone, changes, message):
    with pytest.raises(InputError, match=message):
        segmenter(backbone, **changes)


def test_unknown_field_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'channels'"):
        SegmenterConfig.from_dict({"chanels": 3})
