import torch

from mambar.ops import ScanDirection


def test_the_sizes_are_those_of_the_projections():
    params = ScanDirection(
        *(torch.zeros(6, 4), None, torch.zeros(10, 6), torch.zeros(6, 2), torch.zeros(6), torch.zeros(6, 4)),
        torch.zeros(6),
    )
    assert params.sizes == (2, 4)
