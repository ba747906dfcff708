"""Checkpoints and the run directory, written atomically."""
