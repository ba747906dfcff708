"""Preprocessing and augmentation of images and masks."""
