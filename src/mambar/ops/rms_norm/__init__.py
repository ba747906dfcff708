"""RMS normalisation, alone and after a residual addition."""

from mambar.ops.rms_norm.interface import add_rms_norm as add_rms_norm
from mambar.ops.rms_norm.interface import rms_norm as rms_norm
