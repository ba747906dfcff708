import torch

from mambar.ops import Direction


def test_the_sizes_are_those_of_the_projections():
    way = Direction(
        *(torch.zeros(6, 4), None, torch.zeros(10, 6), torch.zeros(6, 2), torch.zeros(6), torch.zeros(6, 4)),
        torch.zeros(6),
    )
    assert way.sizes == (2, 4)
