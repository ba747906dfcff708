"""In which order an epoch visits its samples: a pure function of (seed, epoch), so no state is stored."""

import numpy as np
from jaxtyping import Int64

from mambar.data.keys import key, permutation
from mambar.errors import InputError

_ROUND = 256


def epoch_length(num_samples: int, *, repeats: int = 1) -> int:
    """How many samples one epoch visits.

    Without repetition all of them. With repeated augmentation as timm's RepeatAugSampler (and DeiT's): an
    epoch stays about as long as without, num_samples rounded down to a multiple of 256, so it reaches about
    num_samples / repeats different images.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats} is not a count; use 1 for none, 3 for repeated augmentation.")
    if repeats == 1 or num_samples < _ROUND:
        return num_samples
    return num_samples // _ROUND * _ROUND


def epoch_order(num_samples: int, *, seed: int, epoch: int, repeats: int = 1) -> Int64[np.ndarray, "order"]:
    """The sample index at every position of an epoch.

    With `repeats` r a random order is stretched r-fold (a, a, a, b, b, b, …) and cut at `epoch_length`: the
    copy number of position p is p % r. Neighboring positions go to different shards (see loaders), so a
    shard meets the copies of an image in different augmentations, as in DeiT.
    """
    length = epoch_length(num_samples, repeats=repeats)
    order = permutation(num_samples, key(seed, "order", epoch))
    return np.repeat(order[: -(-length // repeats)], repeats)[:length]


def steps_per_epoch(num_samples: int, *, batch_size: int, repeats: int = 1) -> int:
    """Full global batches in an epoch; what is left over is dropped (another part each epoch)."""
    return epoch_length(num_samples, repeats=repeats) // batch_size
