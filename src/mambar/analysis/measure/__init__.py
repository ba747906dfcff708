"""Norms, outliers, maps and probes of token models, as arrays."""
