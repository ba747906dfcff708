"""Accuracy of frozen features: k nearest neighbors, logistic regression and a linear probe.

The features are those of the last block after the final norm. They are computed once per image and written to files,
so that they need not fit in memory and several processes can share the work.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.data.loading.loaders import Batch
from mambar.data.loading.to_device import to_device
from mambar.errors import InputError
from mambar.evaluation.metrics import top_k_correct
from mambar.models.protocol import TokenModel
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import Tokens

# One vector per image: the registers concatenated or averaged, the first register (the class token of Vim and of a
# ViT), the mean of the patches, or the mean of the registers and that of the patches concatenated.
FEATURES: Final[Mapping[str, Callable[[Tokens], Tensor]]] = {
    "registers": lambda tokens: tokens.registers.flatten(1),
    "register_mean": lambda tokens: tokens.registers.mean(1),
    "token": lambda tokens: tokens.registers[:, 0],
    "avg": lambda tokens: tokens.patches.mean(1),
    "register_mean_avg": lambda tokens: torch.cat([tokens.registers.mean(1), tokens.patches.mean(1)], 1),
}
NEIGHBORS: Final = (10, 20, 100, 200)
# Weight decays relative to the mean loss, and learning rates for a batch of 256, of which the best is selected.
LOGISTIC_STRENGTHS: Final = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
LEARNING_RATES: Final = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
# Queries and training images whose similarities are computed at a time: 256 MiB of float32.
_QUERIES, _BLOCK = 1024, 65_536


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of a split.

    Attributes:
        features: One row per image for each name in `FEATURES`; read from disk when used.
        labels: Class indices.
    """

    features: Mapping[str, Float[np.ndarray, "images _"]]
    labels: Int64[np.ndarray, "images"]


@dataclass(frozen=True, kw_only=True)
class FrozenScore:
    """Accuracy of one protocol on one feature.

    Attributes:
        features: A name in `FEATURES`.
        protocol: A name in `PROTOCOLS`.
        setting: The number of neighbors, or the strength or learning rate that was selected.
        top1: Fraction (0-1) of test images whose class ranks first.
        top5: Fraction (0-1) of test images whose class is among the first five.
        count: Number of test images.
    """

    features: str
    protocol: str
    setting: float
    top1: float
    top5: float
    count: int


def pooled_rows(tokens: Tokens, batch: Batch, *, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named features of a batch; the `rows` of `write_rows`, whose files `read_features` reads."""
    if not tokens.registers.shape[1] and set(names) != {"avg"}:
        raise InputError("The model has no registers and no class token; use --features avg.")
    return {name: FEATURES[name](tokens).float().cpu().numpy() for name in names}


def own_logits(model: TokenModel, tokens: Tokens, images: Tensor) -> Tensor:
    """Logits of the model's classifier, from its normed tokens of the last block where its class allows that."""
    if isinstance(model, VisionMamba) and model.config.head:
        return model.head(tokens)
    if isinstance(model, TimmViT):
        network: Any = model.model
        return network.forward_head(torch.cat([tokens.registers, tokens.patches], 1))
    return model.forward(images)


def write_rows(
    model: TokenModel,
    batches: Iterable[Batch],
    directory: Path,
    *,
    num_images: int,
    rows: Callable[[Tokens, Batch], Mapping[str, np.ndarray]],
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes what `rows` returns for each image of the batches to files in `directory`, at the index of the image.

    `rows` gets the tokens of the last block after the final norm, and the batch with the model's input as images.
    Several processes write to the same directory, each its own batches. The file `labels` has the label + 1 of each
    image, and 0 if it was not read.
    """
    files: dict[str, np.memmap] = {}
    labels = _file(directory / "labels", np.dtype(np.int64), (num_images,))
    done = 0
    for batch in batches:
        with torch.inference_mode():
            images = to_device(batch.images, device)
            images = prepare(images) if prepare else images
            (tokens,) = model.tokens(images, [-1], tensor="normed")
            written = rows(tokens, batch.replace(images=images))
        indices = batch.indices.numpy()
        for name, found in written.items():
            if name not in files:
                files[name] = _file(directory / name, found.dtype, (num_images, *found.shape[1:]))
            files[name][indices] = found
        labels[indices] = batch.labels.numpy() + 1
        done += len(batch)
        if progress is not None:
            progress(done)


def _file(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped file of zeros that several processes share; the first one creates it."""
    with path.open("ab") as file:
        file.truncate(math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def read_features(directory: Path, names: Sequence[str], *, num_images: int) -> FeatureSet:
    """The features that `write_rows` wrote with `pooled_rows`, without the images that could not be read."""
    labels = read_labels(directory)
    known = labels >= 0
    features = {}
    for name in names:
        rows = np.memmap(directory / name, dtype=np.float32, mode="r").reshape(num_images, -1)
        features[name] = rows if known.all() else rows[known]
    return FeatureSet(features=features, labels=labels[known])


def read_labels(directory: Path) -> Int64[np.ndarray, "images"]:
    """The labels that `write_rows` wrote, -1 for images that could not be read; InputError if none could be."""
    labels = np.fromfile(directory / "labels", dtype=np.int64) - 1
    if not (labels >= 0).any():
        raise InputError(f"None of the {len(labels)} images could be read; there are no features to evaluate.")
    return labels


def evaluate_features(
    train: FeatureSet,
    test: FeatureSet,
    *,
    num_classes: int,
    protocols: Sequence[str],
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[FrozenScore]:
    """The accuracy of each feature under each protocol."""
    scores = []
    target = torch.from_numpy(test.labels)
    for name in train.features:
        x, y = torch.from_numpy(np.array(train.features[name])), torch.from_numpy(train.labels)
        queries = torch.from_numpy(np.array(test.features[name]))
        if not (torch.isfinite(x).all() and torch.isfinite(queries).all()):
            raise InputError(f"The features {name!r} contain NaN or Inf; check the model's weights.")
        for protocol in protocols:
            results = PROTOCOLS[protocol](x, y, queries, num_classes, torch.device(device), seed)
            for setting, logits in results.items():
                top1, top5 = top_k_correct(logits, target, (1, min(5, num_classes))).tolist()
                shares = {"top1": top1 / len(target), "top5": top5 / len(target), "count": len(target)}
                scores.append(FrozenScore(features=name, protocol=protocol, setting=setting, **shares))
    return scores


def knn_votes(
    train: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    queries: Float[Tensor, "queries dim"],
    num_classes: int,
    device: torch.device,
    seed: int = 0,
    *,
    neighbors: Sequence[int] = NEIGHBORS,
    temperature: float = 0.07,
) -> dict[float, Float[Tensor, "queries classes"]]:
    """Votes of the k nearest training images by cosine similarity s, weighted by exp(s / temperature), for each k.

    Protocol of "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978), as used
    by DINO. A k above the number of training images is omitted.
    """
    allowed = [k for k in neighbors if k <= len(train)]
    if not allowed:
        raise InputError(f"{len(train)} training images are fewer than k={min(neighbors)}; use another protocol.")
    votes: dict[float, list[Tensor]] = {k: [] for k in allowed}
    numbers = torch.arange(len(train))
    for chunk in queries.split(_QUERIES):
        query = chunk.to(device)
        nearest, indices = nearest_neighbors(
            query, zip(train.split(_BLOCK), numbers.split(_BLOCK), strict=True), k=max(allowed)
        )
        neighbor_labels = labels.to(device)[indices]
        for k in allowed:
            weights = torch.exp(nearest[:, :k] / temperature)
            votes[k].append(
                query.new_zeros(len(query), num_classes).scatter_add_(1, neighbor_labels[:, :k], weights).cpu()
            )
    return {k: torch.cat(parts) for k, parts in votes.items()}


def nearest_neighbors(
    queries: Float[Tensor, "queries dim"], blocks: Iterable[tuple[Tensor, Tensor]], *, k: int
) -> tuple[Float[Tensor, "queries neighbors"], Int64[Tensor, "queries neighbors"]]:
    """The k largest cosine similarities of each query, in falling order, and the indices of these neighbors.

    blocks: vectors and their numbers, which are moved to the device of the queries one block at a time.
    """
    queries = F.normalize(queries, dim=1)
    nearest = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for block, numbers in blocks:
        similarity = queries @ F.normalize(block.to(queries.device), dim=1).T
        found, places = similarity.topk(min(k, len(block)), dim=1)
        both = torch.cat([nearest, found], 1)
        both_indices = torch.cat([indices, numbers.to(queries.device)[places]], 1)
        nearest, chosen = both.topk(min(k, both.shape[1]), dim=1)
        indices = both_indices.gather(1, chosen)
    return nearest, indices


def logistic_logits(
    train: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    queries: Float[Tensor, "queries dim"],
    num_classes: int,
    device: torch.device,
    seed: int = 0,
) -> dict[float, Float[Tensor, "queries classes"]]:
    """Logits of a multinomial logistic regression on standardized features, fitted by L-BFGS.

    The strength is that of `LOGISTIC_STRENGTHS` with the best accuracy on a held-out part of the training images.
    """
    x, y, held, queries = _standardized(train, labels, queries, device)

    def fit(rows: Tensor, strengths: Sequence[float]) -> list[Tensor]:
        inputs, targets = x[rows], y[rows]
        weight = torch.zeros(num_classes, x.shape[1] + 1, device=device, requires_grad=True)
        fitted = []
        # From strong to weak: each solution is the start of the next.
        for strength in strengths:
            optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

            def closure(strength: float = strength, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(F.linear(inputs, weight[:, :-1], weight[:, -1]), targets)
                total = loss + strength / 2 * weight[:, :-1].square().sum()
                total.backward()
                return total

            optimizer.step(closure)
            fitted.append(weight.detach().clone())
        return fitted

    def num_correct(weight: Tensor) -> int:
        return int((F.linear(x[held], weight[:, :-1], weight[:, -1]).argmax(1) == y[held]).sum())

    counts = [num_correct(weight) for weight in fit(~held, LOGISTIC_STRENGTHS)]
    best = counts.index(max(counts))
    weight = fit(torch.ones_like(held), LOGISTIC_STRENGTHS[: best + 1])[-1].cpu()
    return {LOGISTIC_STRENGTHS[best]: F.linear(queries, weight[:, :-1], weight[:, -1])}


def linear_logits(
    train: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    queries: Float[Tensor, "queries dim"],
    num_classes: int,
    device: torch.device,
    seed: int = 0,
    *,
    epochs: int = 100,
    batch_size: int = 1024,
) -> dict[float, Float[Tensor, "queries classes"]]:
    """Logits of a linear classifier trained by SGD (momentum 0.9, cosine schedule) on standardized features.

    All `LEARNING_RATES` are trained at once; the one with the best accuracy on a held-out part is trained again on
    all training images.
    """
    x, y, held, queries = _standardized(train, labels, queries, device)

    def fit(rows: Tensor, rates: Sequence[float]) -> Float[Tensor, "rates dim classes"]:
        inputs, targets = x[rows], y[rows]
        generator = torch.Generator().manual_seed(seed)
        size = min(batch_size, len(inputs))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(epochs):
                order = torch.randperm(len(inputs), generator=generator).to(device)
                for part in order[: len(inputs) // size * size].split(size):
                    yield inputs[part], F.one_hot(targets[part], num_classes).float()

        steps = epochs * (len(inputs) // size)
        return linear_weights(batches(), steps=steps, rates=[rate * size / 256 for rate in rates])

    def logits(weight: Tensor, inputs: Tensor) -> Tensor:
        return inputs @ weight[..., :-1, :] + weight[..., -1:, :]

    correct = (logits(fit(~held, LEARNING_RATES), x[held]).argmax(2) == y[held]).sum(1)
    best = LEARNING_RATES[int(correct.argmax())]
    weight = fit(torch.ones_like(held), [best])[0].cpu()
    return {best: logits(weight, queries)}


def linear_weights(
    batches: Iterable[tuple[Tensor, Tensor]], *, steps: int, rates: Sequence[float]
) -> Float[Tensor, "rates dim classes"]:
    """Weights and, in the last row, biases of linear classifiers after SGD, one for each learning rate.

    Momentum 0.9, cosine schedule over `steps` batches. A batch has inputs (batch, dim) and targets (batch, classes):
    the probabilities of the classes, times the weight of the sample. The loss is the weighted mean cross-entropy.
    """
    weight = momentum = rate = torch.zeros(())
    for step, (inputs, targets) in enumerate(batches):
        if not step:
            weight = inputs.new_zeros(len(rates), inputs.shape[1] + 1, targets.shape[1])
            momentum, rate = torch.zeros_like(weight), inputs.new_tensor(rates)[:, None, None]
        sample_weights = targets.sum(1, keepdim=True)  # (B, 1)
        batch = F.pad(inputs, (0, 1), value=1.0)  # (B, dim + 1)
        error = torch.softmax(batch @ weight, dim=2) * sample_weights - targets  # (rates, B, classes)
        momentum = 0.9 * momentum + batch.T @ error / sample_weights.sum()
        weight = weight - rate * (0.5 + 0.5 * np.cos(np.pi * step / steps)) * momentum
    return weight


def _standardized(
    train: Tensor, labels: Tensor, queries: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features of zero mean and unit variance, labels, the held-out part, and the queries on that scale.

    Held out is every fifth image of a class. A constant feature becomes zero.
    """
    mean, scale = train.mean(0), train.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * train.abs().amax(0), scale, torch.inf)
    order = torch.argsort(labels, stable=True)
    starts = torch.searchsorted(labels[order], labels[order])
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order] = (torch.arange(len(labels)) - starts) % 5 == 4
    if not held.any():
        raise InputError("No class has five training images, from which one is held out; use --protocol knn.")
    return ((train - mean) / scale).to(device), labels.to(device), held.to(device), (queries - mean) / scale


Protocol = Callable[[Tensor, Tensor, Tensor, int, torch.device, int], Mapping[float, Tensor]]
PROTOCOLS: Final[Mapping[str, Protocol]] = {"knn": knn_votes, "logistic": logistic_logits, "linear": linear_logits}
