import pytest
import torch

from mambar.ops import selective_scan_with_state
from mambar.ops.selective_scan import chunked
from op_inputs import assert_same, scan_inputs, to_double, with_gradients


def scan_with(backend, **options):
    return lambda **tensors: selective_scan_with_state(**tensors, backend=backend, **options)


@pytest.mark.parametrize("values", [1, 7, 24, 60, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_any_tile_size_gives_the_same(monkeypatch, values, reverse):
    monkeypatch.setattr(chunked, "TILE_VALUES", values)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_VALUES", values)
    tensors = scan_inputs(5, 38, 7, 3)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = with_gradients(scan_with("reference", **options), to_double(tensors))
    assert_same(with_gradients(scan_with("chunked", **options), tensors), expected, torch.float32)


def test_a_backward_chunk_is_a_whole_number_of_forward_chunks():
    assert chunked.BACKWARD_STEPS % chunked.STEPS == 0


def test_tiles_cover_all_items_and_channels_once():
    for batch, d_inner, d_state, values in (
        (1, 1, 1, 1),
        (5, 7, 3, 10),
        (3, 100, 16, 400),
        (9, 4, 2, 30),
        (2, 50, 64, 8),
    ):
        tensors = scan_inputs(batch, 2, d_inner, d_state)
        seen = torch.zeros(batch, d_inner)
        for items, channels in chunked._tiles(chunked._Inputs(**tensors), values):
            seen[items, channels] += 1
            size = seen[items, channels].numel() * d_state
            assert size <= max(values, d_state) or seen[items, channels].shape == (1, 1)
        assert bool((seen == 1).all())


def test_nothing_as_large_as_all_states_is_saved():
    tensors = scan_inputs(2, 64, 16, 16)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan_with_state(**leaves, backend="chunked")
    assert max(kept) <= 2 * 64 * 16 * 16 // chunked.BACKWARD_STEPS


def test_second_derivatives():
    tensors = [tensor.requires_grad_() for tensor in scan_inputs(1, 3, 2, 2, dtype=torch.float64).values()]

    def scan(*tensors):
        return selective_scan_with_state(*tensors, delta_softplus=True, backend="chunked")

    assert torch.autograd.gradgradcheck(scan, tensors)


def test_inference_mode_saves_nothing():
    tensors = scan_inputs(2, 21, 3, 2)
    tensors["u"].requires_grad_()
    with torch.inference_mode():
        y = selective_scan_with_state(**tensors, backend="chunked")[0]
    assert not y.requires_grad
