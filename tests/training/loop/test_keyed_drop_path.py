import torch
from torch import nn

from mambar.nn.block import DropPath
from mambar.training.loop.keyed_drop_path import KeyedDropPath


def layers(*rates):
    return nn.ModuleList(DropPath(rate) for rate in rates)


def kept(model, images):
    branch = torch.ones(images, 2, 3)
    return torch.stack([layer(branch)[:, 0, 0] for layer in model])


def test_masks_depend_on_the_key_only():
    model = layers(0.2, 0.5)
    source = KeyedDropPath(model, torch.device("cpu"))
    source.draw(5, 16)
    first = kept(model, 16)
    torch.manual_seed(99)
    torch.rand(7)
    source.draw(5, 16)
    assert torch.equal(kept(model, 16), first)
    source.draw(6, 16)
    assert not torch.equal(kept(model, 16), first)


def test_windows_are_rows_of_the_full_mask():
    model = layers(0.3, 0.3, 0.3)
    source = KeyedDropPath(model, torch.device("cpu"))
    source.draw(1, 12)
    whole = kept(model, 12)
    parts = []
    for start in range(0, 12, 4):
        source.window(start, start + 4)
        parts.append(kept(model, 4))
    assert torch.equal(torch.cat(parts, 1), whole)


def test_rates_are_applied_and_rate_zero_is_unchanged():
    model = layers(0.0, 0.25)
    source = KeyedDropPath(model, torch.device("cpu"))
    assert source.layers == [model[1]]
    source.draw(3, 20_000)
    values = kept(model, 20_000)
    assert (values[0] == 1).all()
    assert abs((values[1] == 0).float().mean() - 0.25) < 0.01
    assert abs(values[1].mean() - 1) < 0.02


def test_evaluation_drops_nothing():
    model = layers(0.5).eval()
    KeyedDropPath(model, torch.device("cpu")).draw(1, 4)
    assert (kept(model, 4) == 1).all()


def test_other_models_keep_their_own_masks():
    one, other = layers(0.5), layers(0.5)
    KeyedDropPath(one, torch.device("cpu")).draw(1, 4)
    assert kept(other, 9).shape == (1, 9)
