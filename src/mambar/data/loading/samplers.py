"""The order of the samples of an epoch: a pure function of (seed, epoch), without stored state."""

import numpy as np
from jaxtyping import Int64

from mambar.data.keys import key, permutation
from mambar.errors import InputError

_ROUND = 256


def epoch_length(num_samples: int, *, repeats: int = 1) -> int:
    """The number of samples in an epoch.

    All of them without repeated augmentation. With it as in timm's RepeatAugSampler and in DeiT: num_samples rounded
    down to a multiple of 256, of which about num_samples / repeats are different images.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats} must be at least 1; use 1 for none, 3 for repeated augmentation.")
    if repeats == 1 or num_samples < _ROUND:
        return num_samples
    return num_samples // _ROUND * _ROUND


def epoch_order(num_samples: int, *, seed: int, epoch: int, repeats: int = 1) -> Int64[np.ndarray, "order"]:
    """The sample index at each position of an epoch.

    With `repeats` r each index of a random order is repeated r times (a, a, a, b, b, b, …), up to `epoch_length`.
    Position p has copy p % r. Neighboring positions go to different shards (see loaders), so the copies of an image
    are in different shards, as in DeiT.
    """
    length = epoch_length(num_samples, repeats=repeats)
    order = permutation(num_samples, key(seed, "order", epoch))
    return np.repeat(order[: -(-length // repeats)], repeats)[:length]


def steps_per_epoch(num_samples: int, *, batch_size: int, repeats: int = 1) -> int:
    """Full batches in an epoch; the remaining samples, other ones in each epoch, are dropped."""
    return epoch_length(num_samples, repeats=repeats) // batch_size
