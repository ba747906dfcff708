import pytest
import torch

from mambar.ops import selective_scan_with_state
from mambar.ops.selective_scan import chunked
from op_inputs import assert_same, scan_inputs, to_double, with_gradients


def scan_with(backend, **options):
    return lambda **tensors: selective_scan_with_state(**tensors, backend=backend, **options)


@pytest.mark.parametrize("values", [1, 7, 24, 60, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_any_cut_into_tiles_gives_the_same(monkeypatch, values, reverse):
    monkeypatch.setattr(chunked, "TILE_VALUES", values)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_VALUES", values)
    tensors = scan_inputs(5, 38, 7, 3)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    assert_same(with_gradients(scan_with("chunked", **options), tensors), expected, torch.float32)


def test_whole_chunks_of_the_forward_pass_make_one_of_the_backward_pass():
    assert chunked.BACKWARD_STEPS % chunked.STEPS == 0


def test_tiles_cover_everything_once():
    for batch, inner, state, values in ((1, 1, 1, 1), (5, 7, 3, 10), (3, 100, 16, 400), (9, 4, 2, 30), (2, 50, 64, 8)):
        tensors = scan_inputs(batch, 2, inner, state)
        seen = torch.zeros(batch, inner)
        for items, channels in chunked._tiles(chunked._Inputs(**tensors), values):
            seen[items, channels] += 1
            size = seen[items, channels].numel() * state
            assert size <= max(values, state) or seen[items, channels].shape == (1, 1)
        assert bool((seen == 1).all())


def test_nothing_as_large_as_all_states_is_kept():
    tensors = scan_inputs(2, 64, 16, 16)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan_with_state(**leaves, backend="chunked")
    assert max(kept) <= 2 * 64 * 16 * 16 // chunked.BACKWARD_STEPS


def test_a_second_derivative_is_refused_not_wrong():
    tensors = scan_inputs(1, 3, 2, 2, dtype=torch.float64)
    u = tensors["u"].requires_grad_()
    y = selective_scan_with_state(**tensors, backend="chunked")[0]
    (gradient,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_inference_mode_keeps_nothing():
    tensors = scan_inputs(2, 21, 3, 2)
    tensors["u"].requires_grad_()
    with torch.inference_mode():
        y = selective_scan_with_state(**tensors, backend="chunked")[0]
    assert not y.requires_grad
