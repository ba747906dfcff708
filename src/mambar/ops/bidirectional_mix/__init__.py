"""The fused computation of the vision mixer: convolution, projections and scan in both directions."""

from mambar.ops.bidirectional_mix.interface import ScanDirection as ScanDirection
from mambar.ops.bidirectional_mix.interface import bidirectional_mix as bidirectional_mix
