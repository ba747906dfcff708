"""scikit-learn's 1,797 handwritten digits of 8×8 pixels, which need no download."""

from typing import Any

import numpy as np
import torch

from mambar.data.dataset import Sample, check_split, sha256_of, stratified_split

_VAL_FRACTION = 0.2
# Every run holds out the same digits.
_SPLIT_SEED = 0


class Digits:
    """Handwritten digits with three equal channels: 1,438 for training, 359 for validation."""

    name = "digits"
    classes = tuple("0123456789")

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        check_split(split, "digits")
        loaded: Any = load_digits()
        pixels, labels = np.asarray(loaded.data), np.asarray(loaded.target)
        parts = stratified_split(labels, fraction=_VAL_FRACTION, seed=_SPLIT_SEED)
        chosen = parts[("train", "val").index(split)]
        # Stored values are 0 … 16.
        gray = np.rint(pixels[chosen].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.split = split
        self.images = torch.from_numpy(gray).expand(-1, 3, -1, -1)  # (samples, 3, 8, 8)
        self.labels = labels[chosen].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], int(self.labels[index]))

    def fingerprint(self) -> str:
        """sha256 of all pixels and labels."""
        return sha256_of(self.images[:, 0].numpy(), self.labels)
