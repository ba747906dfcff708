"""Denormals are flushed inside a run only."""

import pytest
import torch

from mambar.training.loop.precision import flush_denormals


def denormals_count() -> bool:
    return float(torch.full((), 1e-40) + 0) != 0


@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_are_zero_inside_and_as_before_afterwards(flushed):
    try:
        assert torch.set_flush_denormal(flushed)
        with pytest.raises(KeyError), flush_denormals():
            assert not denormals_count()
            raise KeyError
        assert denormals_count() != flushed
    finally:
        torch.set_flush_denormal(False)
