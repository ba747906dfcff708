"""The bidirectional mix in plain PyTorch: `composed`, with the reference of each part."""

from torch import Tensor

from mambar.ops.bidirectional_mix import composed
from mambar.ops.bidirectional_mix.direction import ScanDirection


def bidirectional_mix(
    xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, *, average: bool
) -> Tensor:
    """The sum of both directions over the same x and gate z, halved if `average`."""
    return composed.bidirectional_mix(xz, forward_params, backward_params, average=average, backend="reference")
