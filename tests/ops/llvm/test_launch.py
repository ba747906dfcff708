import pytest
import torch

pytest.importorskip("llvmlite")

from mambar.ops.llvm.launch import roofline_states_per_second, should_stream, strided_arguments, sum_parts
from mambar.ops.llvm.machine import NAMED_MACHINES


@pytest.mark.parametrize("shape", [(1, 5), (2, 1), (7, 3, 130), (3, 64)])
def test_parts_are_added_in_their_order(shape):
    parts = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert torch.equal(sum_parts(parts), total)


def test_a_reverse_scan_starts_at_the_last_row():
    tensor = torch.zeros(2, 5, 8, dtype=torch.bfloat16)[..., 2:6]
    forward, reverse = (strided_arguments(flag, x=tensor) for flag in (False, True))
    assert forward == {"x": tensor.data_ptr(), "x_batch": 40, "x_time": 8}
    assert reverse == {"x": tensor[0, 4].data_ptr(), "x_batch": 40, "x_time": -8}
    assert strided_arguments(True, x=None) == {"x": 0, "x_batch": 0, "x_time": 0}


def test_only_large_aligned_results_bypass_the_caches():
    machine = NAMED_MACHINES["avx512"]
    large = torch.empty(1, 1 << 12, 1024)
    assert should_stream(machine, large) and should_stream(machine, large, None)
    assert not should_stream(machine, large[:, :64])
    assert not should_stream(machine, large[..., 1:])
    assert not should_stream(machine, torch.empty(1, 1 << 12, 1023))


def test_the_roofline_is_a_positive_rate():
    forward, both = (roofline_states_per_second(backward=backward, rounds=2000) for backward in (False, True))
    assert forward > 0 and both > 0
