import torch
import torch.nn.functional as F

from mambar.ops import causal_conv1d


def test_equals_a_padded_grouped_convolution():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 11, 6), torch.randn(6, 4), torch.randn(6)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight[:, None], bias, groups=6).transpose(1, 2)
    found = causal_conv1d(x, weight, bias, activation=None, backend="reference")
    torch.testing.assert_close(found, expected)


def test_the_last_filter_column_multiplies_the_current_position():
    x = torch.zeros(1, 5, 1)
    x[0, 2] = 1
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    for reverse, expected in ((False, [0, 0, 3, 2, 1]), (True, [1, 2, 3, 0, 0])):
        y = causal_conv1d(x, weight, activation=None, reverse=reverse, backend="reference")
        assert y.flatten().tolist() == expected
