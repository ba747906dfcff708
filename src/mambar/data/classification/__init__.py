"""Labelled image datasets."""
