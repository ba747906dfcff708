"""Datasets of images with a class mask."""
