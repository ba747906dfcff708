"""Benchmarks on the user's machine: a parity check first, then medians of interleaved rounds."""

from mambar.bench.table import Row as Row
from mambar.bench.table import markdown as markdown
from mambar.bench.timing import Timing as Timing
from mambar.bench.timing import interleaved as interleaved
