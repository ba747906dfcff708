"""Mamba-R: vision Mamba with register tokens."""

from mambar.version import __version__ as __version__
