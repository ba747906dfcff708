"""Numbers of a run: what holds inside it, and that nothing of it stays behind."""

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
