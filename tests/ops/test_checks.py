import pytest
import torch

from mambar.errors import InputError
from mambar.ops.checks import check_decay, check_device, check_shape, choose_backend, compute_dtype, find_float64, rows


def test_shapes_are_named_in_the_message():
    check_shape("u", torch.zeros(2, 3), batch=2, length=None)
    check_shape("z", None, batch=2)
    with pytest.raises(InputError, match="u has length 3, the other tensors have 4"):
        check_shape("u", torch.zeros(2, 3), batch=2, length=4)
    with pytest.raises(InputError, match=r"u has 2 dimensions; it needs 3: \(batch, length, d_inner\)"):
        check_shape("u", torch.zeros(2, 3), batch=None, length=None, d_inner=None)
    with pytest.raises(TypeError, match=r"u has dtype torch.int64"):
        check_shape("u", torch.zeros(2, dtype=torch.int64), batch=2)


def test_devices_must_agree():
    with pytest.raises(InputError, match="A is on meta, u on cpu"):
        check_device(u=torch.zeros(1), D=None, A=torch.zeros(1, device="meta"))


def test_a_positive_decay_is_refused_where_it_costs_nothing():
    check_decay(torch.tensor([[0.0, -1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"A has a value of 0.5; it must not be positive"):
        check_decay(torch.tensor([[0.5, -1.0]]))
    with pytest.raises(ValueError, match="no state"):
        check_decay(torch.zeros(3, 0))
    check_decay(torch.ones(2, 2, device="meta"))


def test_sums_are_at_least_float32():
    half, single, double = (torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.float32, torch.float64))
    assert find_float64(("u", "D"), (half, None)) is None and compute_dtype(None) == torch.float32
    assert find_float64(("u", "A"), (half, double)) == "A" and compute_dtype("A") == torch.float64

    def promoted(**tensors):
        """The types in which the reference gets a scan's activations u and z and its parameter A."""
        return [t.dtype for t in choose_backend("selective_scan", "reference", ("u", "z"), tensors)[1] if t is not None]

    assert promoted(u=half, z=torch.zeros(1, dtype=torch.bfloat16), A=half) == [torch.float32] * 3
    assert promoted(u=half, z=None, A=half) == [torch.float16, torch.float32]
    assert promoted(u=single, z=double, A=half) == promoted(u=half, z=half, A=double) == [torch.float64] * 3


def test_rows_copies_only_scattered_channels():
    wide = torch.zeros(2, 5, 8)
    assert rows(wide[..., 2:5]).data_ptr() == wide[..., 2:5].data_ptr()
    assert rows(wide.transpose(1, 2)).stride(-1) == 1
    assert rows(torch.zeros(2, 5, 1).expand(2, 5, 4)).stride(-1) == 1
