"""The bidirectional mix in plain PyTorch: `composed`, with the reference of each part."""

from functools import partial

from mambar.ops.bidirectional_mix import composed

bidirectional_mix = partial(composed.bidirectional_mix, backend="reference")
