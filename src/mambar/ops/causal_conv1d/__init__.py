"""The short causal convolution in front of the scan."""

from mambar.ops.causal_conv1d.interface import causal_conv1d as causal_conv1d
