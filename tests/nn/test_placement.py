"""Register positions: the released rule, and the properties every rule has."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden_cases
from mambar.errors import InputError
from mambar.nn.placement import PLACEMENTS, register_positions

COUNTS = st.integers(0, 400), st.integers(0, 40)


@pytest.mark.parametrize("case", golden_cases.cases("layout"), ids=str)
def test_golden_layouts(case):
    rows, cols = case.config["grid"]
    found = register_positions("evenly", rows * cols, case.config["num_registers"])
    assert list(found) == case["cls_positions"].tolist()


def test_positions_equal_the_published_ones():
    assert register_positions("evenly", 196, 12) == tuple(range(15, 192, 16))
    assert register_positions("evenly", 64, 12)[-1] == 59  # 16 of 64 patches follow the last register at 128 pixels
    assert register_positions("evenly", 196, 1) == register_positions("middle", 196, 1) == (98,)
    assert register_positions("evenly", 3, 8) == tuple(range(8))


@pytest.mark.parametrize("placement", PLACEMENTS)
@given(num_patches=COUNTS[0], num_registers=COUNTS[1])
def test_n_distinct_increasing_positions(placement, num_patches, num_registers):
    found = register_positions(placement, num_patches, num_registers)
    assert len(found) == num_registers
    assert list(found) == sorted(set(found))
    assert all(0 <= position < num_patches + num_registers for position in found)


@given(num_patches=st.integers(1, 400), num_registers=COUNTS[1])
def test_spread_runs_differ_by_at_most_one(num_patches, num_registers):
    found = [-1, *register_positions("spread", num_patches, num_registers), num_patches + num_registers]
    runs = [after - before - 1 for before, after in itertools.pairwise(found)]
    assert sum(runs) == num_patches
    assert max(runs) - min(runs) <= 1


def test_random_placement_is_deterministic():
    assert register_positions("random", 196, 12) == register_positions("random", 196, 12)
    assert register_positions("random", 196, 12) != register_positions("evenly", 196, 12)


def test_unknown_names_and_negative_counts_are_refused():
    with pytest.raises(InputError, match="choose one of evenly, spread"):
        register_positions("sideways", 4, 1)
    with pytest.raises(InputError, match="0 or more"):
        register_positions("evenly", 4, -1)


def test_register_positions_is_exported():
    import mambar.nn

    assert mambar.nn.register_positions("evenly", 196, 12)[:2] == (15, 31)
