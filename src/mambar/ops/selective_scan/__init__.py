"""The selective scan of Mamba: one definition, several backends."""

from mambar.ops.selective_scan.interface import selective_scan as selective_scan
from mambar.ops.selective_scan.interface import selective_scan_with_state as selective_scan_with_state
