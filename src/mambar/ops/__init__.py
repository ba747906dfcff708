"""Tensor functions, each with several backends: selective scan, convolution, RMS norm, bidirectional mix."""

from mambar.ops.bidirectional_mix import ScanDirection as ScanDirection
from mambar.ops.bidirectional_mix import bidirectional_mix as bidirectional_mix
from mambar.ops.causal_conv1d import causal_conv1d as causal_conv1d
from mambar.ops.dispatch import Backend as Backend
from mambar.ops.dispatch import available_backends as available_backends
from mambar.ops.dispatch import register_backend as register_backend
from mambar.ops.dispatch import unregister_backend as unregister_backend
from mambar.ops.dispatch import use_backend as use_backend
from mambar.ops.rms_norm import add_rms_norm as add_rms_norm
from mambar.ops.rms_norm import rms_norm as rms_norm
from mambar.ops.selective_scan import selective_scan as selective_scan
from mambar.ops.selective_scan import selective_scan_with_state as selective_scan_with_state
