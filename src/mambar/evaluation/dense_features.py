"""Semantic segmentation with frozen patch tokens: a linear probe, and retrieval of the nearest patches.

The tokens are those of the last block after the final norm. Class scores of the patches are resized bilinearly to the
image. Tokens and masks are files that are read in parts, so memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, UInt8, UInt32
from torch import Tensor

from mambar.data.keys import key, numpy_generator, permutation
from mambar.data.segmentation.masks import IGNORE
from mambar.errors import DataError, InputError
from mambar.evaluation.frozen_features import LEARNING_RATES, linear_weights, nearest_neighbors, read_labels
from mambar.evaluation.segmentation import SegmentationCounts, SegmentationResult, compute_metrics, count_pixels
from mambar.nn import Tokens

# Patches whose similarities to a block of training patches are computed at a time: 256 MiB of float32.
_QUERIES, _BLOCK = 4096, 16_384
_RESAMPLES: Final = 1000
# Images whose predicted masks are kept for a picture.
NUM_EXAMPLES: Final = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseSet:
    """Patch tokens and masks of a split, memory-mapped from files.

    Attributes:
        features: Patch tokens of each image, row by row.
        counts: Number of pixels of each class in each patch; ignored pixels are not counted.
        masks: The masks, cropped to whole patches; None for training images, of which only `counts` are needed.
        images: Indices of the images that could be read.
        grid: Rows and columns of patches.
    """

    features: Float[np.ndarray, "images patches dim"]
    counts: UInt32[np.ndarray, "images patches classes"]
    masks: UInt8[np.ndarray, "images height width"] | None
    images: Int64[np.ndarray, "readable"]
    grid: tuple[int, int]

    def parts(self, num_patches: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """(image indices, features, counts) of all images, about `num_patches` patches at a time."""
        size = max(num_patches // self.features.shape[1], 1)
        for start in range(0, len(self.images), size):
            yield self.read(self.images[start : start + size])

    def read(self, images: Int[np.ndarray, "part"]) -> tuple[np.ndarray, Tensor, Tensor]:
        """`images`, and the features and counts of these images."""
        counts = torch.from_numpy(self.counts[images].astype(np.float32))
        return images, torch.from_numpy(self.features[images]), counts


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseScore:
    """Segmentation with frozen patch tokens under one protocol.

    Attributes:
        protocol: A name in `DENSE_PROTOCOLS`.
        setting: The number of neighbors, or the learning rate that was selected.
        result: The metrics over all pixels of the test images.
        low, high: 95 % interval of the mIoU by the bootstrap over test images.
        count: Number of test images.
        examples: Predicted masks of the first images.
    """

    protocol: str
    setting: float
    result: SegmentationResult
    low: float
    high: float
    count: int
    examples: UInt8[np.ndarray, "examples height width"]


def dense_rows(
    tokens: Tokens, masks: UInt8[Tensor, "batch height width"], *, num_classes: int, patch_size: int, keep_masks: bool
) -> dict[str, np.ndarray]:
    """The rows of the files that `read_dense` reads: `patches`, `counts`, and with `keep_masks` also `masks`."""
    (rows, cols), batch = tokens.grid, len(masks)
    masks = masks[:, : rows * patch_size, : cols * patch_size]
    largest = int(torch.where(masks == IGNORE, 0, masks).max())
    if largest >= num_classes:
        raise DataError(f"a mask holds {largest}; {num_classes} classes have labels 0 to {num_classes - 1}.")
    labels = torch.where(masks == IGNORE, num_classes, masks.long())
    patches = labels.reshape(batch, rows, patch_size, cols, patch_size).transpose(2, 3).flatten(3).flatten(0, 2)
    flat = patches + torch.arange(len(patches))[:, None] * (num_classes + 1)
    counts = torch.bincount(flat.flatten(), minlength=len(patches) * (num_classes + 1))
    counts = counts.reshape(batch, rows * cols, num_classes + 1)[:, :, :num_classes]
    found = {"patches": tokens.patches.float().cpu().numpy(), "counts": counts.numpy().astype(np.uint32)}
    return {**found, "masks": masks.numpy()} if keep_masks else found


def read_dense(directory: Path, *, grid: tuple[int, int], num_classes: int, patch_size: int) -> DenseSet:
    """The rows that `write_rows` wrote with `dense_rows`."""
    labels = read_labels(directory)
    shape = (len(labels), grid[0] * grid[1])

    def mapped(name: str, dtype: type, *shape: int) -> np.ndarray:
        return np.memmap(directory / name, dtype=dtype, mode="r").reshape(shape)

    has_masks = (directory / "masks").exists()
    size = (grid[0] * patch_size, grid[1] * patch_size)
    return DenseSet(
        features=mapped("patches", np.float32, *shape, -1),
        counts=mapped("counts", np.uint32, *shape, num_classes),
        masks=mapped("masks", np.uint8, len(labels), *size) if has_masks else None,
        images=np.flatnonzero(labels >= 0),
        grid=grid,
    )


def evaluate_dense_features(
    train: DenseSet,
    test: DenseSet,
    *,
    classes: Sequence[str],
    protocols: Sequence[str],
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[DenseScore]:
    """The metrics of each protocol on the test images."""
    for split in (train, test):
        if not all(torch.isfinite(features).all() for _, features, _ in split.parts(_BLOCK)):
            raise InputError("The patch tokens contain NaN or Inf; check the model's weights.")
    if not any(bool(counts.any()) for _, _, counts in train.parts(_BLOCK)):
        raise DataError("no pixel of the training images is labeled; check the masks.")
    return [_score(name, train, test, classes, torch.device(device), seed) for name in protocols]


def _score(
    protocol: str, train: DenseSet, test: DenseSet, classes: Sequence[str], device: torch.device, seed: int
) -> DenseScore:
    setting, predict = DENSE_PROTOCOLS[protocol](train, device, seed)
    counts, ratios, examples = SegmentationCounts.zeros(len(classes)), [], []
    assert test.masks is not None
    for images, features, _ in test.parts(_QUERIES):
        scores = predict(features.to(device)).float().cpu()  # (B, M, classes)
        for image, each in zip(images, scores, strict=True):
            labels = torch.from_numpy(test.masks[image].copy())
            maps = each.T.reshape(1, -1, *test.grid)
            predicted = F.interpolate(maps, size=tuple(labels.shape), mode="bilinear")[0].argmax(0)
            found = count_pixels(predicted, labels, len(classes))
            counts = counts + found
            confusion = found.confusion
            correct = confusion.diag()
            ratios.append(torch.stack([correct, confusion.sum(0) + confusion.sum(1) - correct]).numpy())
            if len(examples) < NUM_EXAMPLES:
                examples.append(predicted.numpy().astype(np.uint8))
    if not counts.confusion.sum():
        raise DataError("no pixel of the evaluated images is labeled; check the masks.")
    low, high = bootstrap_miou(np.stack(ratios), seed=seed)
    return DenseScore(
        protocol=protocol,
        setting=setting,
        result=compute_metrics(counts, classes),
        low=low,
        high=high,
        count=len(test.images),
        examples=np.stack(examples),
    )


def bootstrap_miou(ratios: Int[np.ndarray, "images 2 classes"], *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mIoU over images; `ratios`: intersection and union of each class."""
    count = len(ratios)
    drawn = numpy_generator(key(seed, "bootstrap")).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    sums = np.tensordot(drawn, ratios, 1).astype(np.float64)  # (resamples, 2, classes)
    occurs = sums[:, 1] > 0
    values = np.where(occurs, sums[:, 0] / np.maximum(sums[:, 1], 1), 0).sum(1) / np.maximum(occurs.sum(1), 1)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# Scores of the classes for each patch (batch, patches, classes).
Predict = Callable[[Float[Tensor, "batch patches dim"]], Float[Tensor, "batch patches classes"]]


def nearest_patches(
    train: DenseSet, device: torch.device, seed: int = 0, *, neighbors: int = 30, temperature: float = 0.02
) -> tuple[float, Predict]:
    """Class fractions of the nearest training patches by cosine similarity s, weighted by softmax(s / temperature).

    The dense retrieval of "Towards In-Context Scene Understanding" (arXiv 2306.01667), with all training patches that
    have a labeled pixel and an exact search.
    """
    counts = train.counts.reshape(-1, train.counts.shape[2])

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for images, features, pixels in train.parts(_BLOCK):
            numbers = torch.from_numpy(images)[:, None] * features.shape[1] + torch.arange(features.shape[1])
            labeled = pixels.any(2)
            if labeled.any():
                yield features[labeled], numbers[labeled]

    def predict(features: Tensor) -> Tensor:
        nearest, indices = nearest_neighbors(features.flatten(0, 1), blocks(), k=neighbors)
        pixels = torch.from_numpy(counts[indices.cpu().numpy()].astype(np.float32)).to(device)
        weights = torch.softmax(nearest / temperature, 1)[:, :, None]
        fractions = (weights * pixels / pixels.sum(2, keepdim=True)).sum(1)
        return fractions.unflatten(0, features.shape[:2])

    return neighbors, predict


def linear_probe(
    train: DenseSet, device: torch.device, seed: int = 0, *, steps: int = 1000, batch_size: int = 16
) -> tuple[float, Predict]:
    """A linear layer on standardized tokens, trained by SGD with batches of 16 images.

    The loss is the cross-entropy of all labeled pixels, each with the scores of its patch. All `LEARNING_RATES` are
    trained at once; the one with the best mIoU on every fifth training image is trained again on all images.
    """
    mean, scale = _statistics(train)

    def standardized(features: Tensor) -> Tensor:
        return (features - mean.to(features.device)) / scale.to(features.device)

    def batches(images: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        size, drawn, epoch = min(batch_size, len(images)), np.empty(0, dtype=np.int64), 0
        for _ in range(steps):
            if len(drawn) < size:
                drawn = np.concatenate([drawn, images[permutation(len(images), key(seed, "linear probe", epoch))]])
                epoch += 1
            _, features, pixels = train.read(drawn[:size])
            drawn = drawn[size:]
            labeled = pixels.any(2)
            if labeled.any():
                yield standardized(features[labeled]).to(device), pixels[labeled].to(device)

    def scores(weight: Tensor, features: Tensor) -> Tensor:
        return features @ weight[..., :-1, :] + weight[..., -1:, :]

    is_held = np.arange(len(train.images)) % 5 == 4
    if not is_held.any():
        raise InputError(
            f"{len(train.images)} training images are too few, since every fifth is held out; use 5 or more."
        )
    weights = linear_weights(batches(train.images[~is_held]), steps=steps, rates=LEARNING_RATES)
    num_classes = train.counts.shape[2]
    confusion = torch.zeros(len(LEARNING_RATES), num_classes, num_classes, dtype=torch.int64)
    for start in train.images[is_held]:
        _, features, pixels = train.read(np.array([start]))
        predicted = scores(weights, standardized(features[0].to(device))).argmax(2).cpu()  # (rates, M)
        for rate, chosen in enumerate(predicted):
            confusion[rate].index_add_(0, chosen, pixels[0].long())
    borders = torch.zeros(num_classes, 4, dtype=torch.int64)
    found = [SegmentationCounts(confusion=each.T.contiguous(), borders=borders) for each in confusion]
    names = [str(number) for number in range(num_classes)]
    values = [compute_metrics(each, names).miou for each in found]
    best = LEARNING_RATES[values.index(max(values))]
    (weight,) = linear_weights(batches(train.images), steps=steps, rates=[best])
    return best, lambda features: scores(weight, standardized(features))


def _statistics(train: DenseSet) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Mean and standard deviation of the training tokens; the deviation of a constant feature is infinite."""
    count = len(train.images) * train.features.shape[1]
    mean = torch.stack([part.double().sum((0, 1)) for _, part, _ in train.parts(_BLOCK)]).sum(0) / count
    squares = [(part.double() - mean).square().sum((0, 1)) for _, part, _ in train.parts(_BLOCK)]
    scale = (torch.stack(squares).sum(0) / count).sqrt()
    largest = torch.stack([part.abs().amax((0, 1)) for _, part, _ in train.parts(_BLOCK)]).amax(0)
    return mean.float(), torch.where(scale > 1e-6 * largest, scale, torch.inf).float()


DENSE_PROTOCOLS: Final[Mapping[str, Callable[[DenseSet, torch.device, int], tuple[float, Predict]]]] = {
    "segmentation_knn": nearest_patches,
    "segmentation_linear": linear_probe,
}
