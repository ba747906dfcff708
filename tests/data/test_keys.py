import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.keys import key, numpy_generator, permutation, seeded_globals, torch_generator

PARTS = st.lists(st.one_of(st.integers(), st.text()), max_size=4)


def test_keys_are_the_same_for_ever():
    assert key(0, "augment", 1, 2, 3) == 4767245603329854002
    assert permutation(8, key(0, "order", 0)).tolist() == [3, 6, 1, 5, 0, 4, 2, 7]


@given(PARTS, PARTS)
def test_keys_differ_where_their_parts_do(left, right):
    same = key(0, "k", *left) == key(0, "k", *right)
    assert same == (left == right)
    assert 0 <= key(0, "k", *left) < 2**63


def test_a_number_and_its_text_are_two_keys():
    assert len({key(1, "k", 2), key(1, "k", "2"), key(12, "k"), key(1, "k2"), key(1, "k", "2", "")}) == 5


def test_numpy_integers_count_and_fractions_do_not():
    assert key(np.int64(3), "k", np.uint8(4)) == key(3, "k", 4)
    with pytest.raises(TypeError):
        key(0, "k", 1.5)


@given(st.integers(0, 2**63 - 1))
def test_generators_start_anew(k):
    assert numpy_generator(k).random() == numpy_generator(k).random()
    assert torch.equal(torch.rand(2, generator=torch_generator(k)), torch.rand(2, generator=torch_generator(k)))


@given(st.integers(0, 300), st.integers(0, 2**63 - 1))
def test_a_permutation_has_each_once(length, k):
    assert sorted(permutation(length, k)) == list(range(length))


def draws():
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def seed_all():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def test_seeded_globals_follow_the_key_and_are_put_back():
    seed_all()
    undisturbed = draws()
    seed_all()
    with seeded_globals(7):
        first = draws()
    with pytest.raises(RuntimeError), seeded_globals(7):
        assert draws() == first
        raise RuntimeError
    assert draws() == undisturbed
    with seeded_globals(8):
        assert draws() != first
