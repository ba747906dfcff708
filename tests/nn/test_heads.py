"""What each head reads."""

import pytest
import torch

from mambar.errors import InputError
from mambar.nn.heads import HEADS, Head
from mambar.nn.registers import Tokens

TOKENS = Tokens(patches=torch.randn(2, 6, 8), registers=torch.randn(2, 4, 8), grid=(2, 3))


def head(name, num_classes=0, reduce=2):
    return Head(name, embed_dim=8, num_registers=4, register_reduction=reduce, num_classes=num_classes)


@pytest.mark.parametrize("name", HEADS)
def test_head_widths(name):
    module = head(name, num_classes=5)
    assert module.features(TOKENS).shape == (2, module.num_features)
    assert module(TOKENS).shape == (2, 5)
    assert head(name)(TOKENS).shape == (2, module.num_features)


def test_values_by_hand():
    torch.testing.assert_close(head("register_mean")(TOKENS), TOKENS.registers.mean(1))
    torch.testing.assert_close(head("token")(TOKENS), TOKENS.registers[:, 0])
    torch.testing.assert_close(head("avg")(TOKENS), TOKENS.patches.mean(1))
    torch.testing.assert_close(head("registers", reduce=1)(TOKENS), TOKENS.registers.reshape(2, 32))
    module = head("registers", reduce=2)
    reduced = torch.cat([module.read_out.reduce(TOKENS.registers[:, i]) for i in range(4)], dim=1)
    expected = reduced / (reduced.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(module(TOKENS), expected)
    module = head("widened")
    wide = module.read_out.widen(TOKENS.registers[:, 0])
    torch.testing.assert_close(module(TOKENS), wide / (wide.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())
    assert wide.shape == (2, 24)


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="must divide embed_dim=8"):
        head("registers", reduce=3)
    with pytest.raises(InputError, match="choose one of registers"):
        head("pool")
    with pytest.raises(InputError, match="num_registers >= 1"):
        Head("registers", embed_dim=8, num_registers=0, register_reduction=1, num_classes=2)
