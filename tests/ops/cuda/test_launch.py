"""Launch parameters that follow from the layout of a tensor."""

import pytest
import torch

from mambar.ops.cuda import conv, launch, scan
from mambar.ops.cuda.launch import TensorLayout, ceil_div, channels_per_load


def layout(shape, strides=None, *, misalignment=0, dtype=torch.bfloat16):
    strides = torch.empty(shape, device="meta").stride() if strides is None else strides
    return TensorLayout(tuple(shape), strides, misalignment, dtype, 0)


@pytest.fixture(autouse=True)
def gpu_of_132(monkeypatch):
    for module in (conv, launch, scan):
        monkeypatch.setattr(module, "num_multiprocessors", lambda device: 132)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (layout((2, 3, 8)), 4),
        (layout((2, 3, 6)), 2),
        (layout((2, 3, 7)), 1),
        (layout((2, 3, 8), misalignment=4), 2),
        (layout((2, 3, 8), misalignment=2), 1),
        (layout((2, 3, 8), (33, 11, 1)), 1),
        (layout((1, 1, 8), (33, 11, 1)), 4),
        (layout((2, 3, 8), (0, 8, 1)), 4),
    ],
)
def test_alignment_limits_the_channels_per_load(given, wanted):
    assert channels_per_load(4, given, None) == wanted


def test_copies_need_rows_of_16_byte_units():
    assert layout((2, 3, 8)).is_copy_aligned
    assert not layout((2, 3, 4)).is_copy_aligned
    assert layout((2, 3, 4), dtype=torch.float32).is_copy_aligned


def test_directions_are_the_leading_dimension():
    assert layout((2, 3, 5, 8)).batch_time_direction_strides == (40, 8, 120)
    assert layout((3, 5, 8)).batch_time_direction_strides == (40, 8, 0)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 208, 209, 589, 4113, 16384])
@pytest.mark.parametrize("steps", [4, 8])
def test_windows_cover_the_sequence_in_whole_slots(length, steps):
    window = scan._equal_window(length, 64, steps)
    assert window % steps == 0 and window <= 64 + steps
    assert ceil_div(length, window) * window >= length


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 8), (2, 8), (3, 4), (8, 4), (9, 1), (11, 1), (12, 2), (16, 2), (17, 1), (128, 1)]
)
def test_small_batches_split_the_states(batch, lanes):
    assert scan._lanes(layout((batch, 208, 1536))) == lanes


@pytest.mark.parametrize(
    ("batch", "length", "segments"),
    [(1, 208, 1), (1, 511, 1), (1, 512, 8), (1, 16384, 22), (5, 4100, 11), (6, 4100, 1)],
)
def test_the_forward_cuts_long_sequences_of_few_channels(batch, length, segments):
    segment = scan.forward_segment((batch, length, 1536))
    assert ceil_div(length, segment) == segments
    assert segment == length or segment % scan.STEPS_FORWARD == 0


@pytest.mark.parametrize(
    ("batch", "length", "segments"),
    [
        *((1, 127, 1), (1, 128, 2), (2, 208, 3), (4, 208, 1), (4, 589, 9), (5, 589, 1), (6, 589, 9), (7, 1036, 11)),
        *((8, 1036, 1), (8, 4108, 11), (16, 4108, 11), (17, 4108, 1), (18, 16400, 1), (128, 208, 1)),
    ],
)
def test_the_backward_cuts_where_blocks_are_few(batch, length, segments):
    segment = scan.backward_segment((2, batch, length, 1536), directions=2)
    assert ceil_div(length, segment) == segments


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 17, 40])
@pytest.mark.parametrize("length", [1, 208, 700, 4108])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_cut_forward_stores_the_states_of_a_cut_backward(batch, length, directions):
    """Both are cut at the same positions, or one is not cut."""
    forward = scan.forward_segment((batch, length, 384))
    backward = scan.backward_segment((batch, length, 384), directions)
    assert forward == length or backward in (forward, length)


@pytest.mark.parametrize("length", [1, 15, 16, 208, 4113])
def test_segments_cover_the_sequence(length):
    segment = conv._segment(layout((3, length, 40)), 2, 4)
    assert 1 <= segment <= length
