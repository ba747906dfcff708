"""The heads against transformers' UperNet with shared weights."""

import re

import pytest
import torch

from mambar.segmentation.upernet import FCNHead, UPerHead

DIMS = [8, 12, 16, 20]


def maps(sides=(16, 8, 4, 2)):
    return [torch.randn(2, dim, side, side + index) for index, (dim, side) in enumerate(zip(DIMS, sides, strict=True))]


def from_transformers(state):
    """Their names → ours."""
    renames = [
        (r"psp_modules\.(\d)\.1\.", r"top.cells.\1."),
        (r"^bottleneck\.", "top.fuse."),
        (r"lateral_convs\.", "lateral."),
        (r"^fpn_convs\.", "smooth."),
        (r"^fpn_bottleneck\.", "fuse."),
        (r"^convs\.0\.", "conv."),
        (r"batch_norm\.", "norm."),
    ]
    renamed = {}
    for name, value in state.items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


def unequal(module):
    """Every parameter and buffer away from its start value, so that a mistake shows."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.2
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)


@pytest.mark.parametrize("training", [False, True])
def test_equals_transformers(need_package, training):
    need_package("transformers")
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    config = UperNetConfig(hidden_size=24, num_labels=7, auxiliary_channels=10)
    theirs = UperNetHead(config, in_channels=DIMS).train(training)
    auxiliary = UperNetFCNHead(config, in_channels=DIMS).train(training)
    unequal(theirs)
    unequal(auxiliary)
    ours = UPerHead(DIMS, num_classes=7, channels=24, norm="batch", dropout=0.0).train(training)
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    our_auxiliary = FCNHead(DIMS[2], num_classes=7, channels=10, norm="batch", dropout=0.0).train(training)
    our_auxiliary.load_state_dict(from_transformers(auxiliary.state_dict()))
    given = maps()
    torch.testing.assert_close(ours(given), theirs(given), rtol=0, atol=2e-5)
    torch.testing.assert_close(our_auxiliary(given[2]), auxiliary(given), rtol=0, atol=2e-5)
    # What was learned of the batch is the same as well.
    for mine, other in zip(ours.buffers(), ours.__class__.buffers(ours), strict=True):
        torch.testing.assert_close(mine, other)


def test_odd_maps_and_one_pixel():
    head = UPerHead(DIMS, num_classes=3, channels=8).eval()
    assert head(maps((5, 3, 2, 1))).shape == (2, 3, 5, 5)
    single = [each[..., :1, :1] for each in maps()]
    assert head(single).shape == (2, 3, 1, 1)


def test_an_image_does_not_see_its_batch():
    head = UPerHead(DIMS, num_classes=3, channels=8).eval()
    given = maps()
    torch.testing.assert_close(head(given)[:1], head([each[:1] for each in given]), rtol=0, atol=1e-5)
