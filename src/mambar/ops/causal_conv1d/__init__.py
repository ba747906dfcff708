"""The short causal convolution before the scan."""

from mambar.ops.causal_conv1d.interface import causal_conv1d as causal_conv1d
