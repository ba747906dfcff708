import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.loading import samplers
from mambar.data.loading.samplers import epoch_length, epoch_order, steps_per_epoch
from mambar.errors import InputError


@given(st.integers(0, 2000), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_visits_each_sample_once(num, seed, epoch):
    order = epoch_order(num, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(num))
    assert np.array_equal(order, epoch_order(num, seed=seed, epoch=epoch))


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(epoch_order(20, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.integers(1, 1500), st.integers(2, 4))
def test_repeats_stand_side_by_side(num, repeats):
    order = epoch_order(num, seed=0, epoch=0, repeats=repeats)
    assert len(order) == epoch_length(num, repeats=repeats)
    blocks = order[: len(order) // repeats * repeats].reshape(-1, repeats)
    assert (blocks == blocks[:, :1]).all()
    assert len(set(blocks[:, 0])) == len(blocks)


@pytest.mark.parametrize("num", [7, 100, 256, 257, 511, 512, 1000, 1281])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_augmentation_is_timms(num, world, repeats, monkeypatch):
    from timm.data.distributed_sampler import RepeatAugSampler

    monkeypatch.setattr(samplers, "permutation", lambda length, key: np.arange(length))
    ours = epoch_order(num, seed=0, epoch=0, repeats=repeats)
    theirs = [
        list(RepeatAugSampler(range(num), world, rank, shuffle=False, num_repeats=repeats)) for rank in range(world)
    ]
    for rank in range(world):
        mine = ours[rank::world].tolist()
        # Where the world does not divide a small set, timm rounds each rank up.
        assert theirs[rank][: len(mine)] == mine
        assert len(theirs[rank]) - len(mine) <= (0 if num >= 256 else 1)


@pytest.mark.parametrize("repeats", [0, -1])
def test_repeats_are_counted_from_1(repeats):
    with pytest.raises(InputError, match="repeats="):
        epoch_order(10, seed=0, epoch=0, repeats=repeats)


def test_steps_leave_out_what_does_not_fill_a_batch():
    assert steps_per_epoch(1438, batch_size=32) == 44
    assert steps_per_epoch(1281167, batch_size=1024, repeats=3) == 1251
    assert steps_per_epoch(10, batch_size=32) == 0
