"""Figures and report pages from arrays that `mambar.analysis.measure` returned."""
