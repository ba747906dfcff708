"""Evaluation of frozen features on a dataset, with any number of processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mambar.data import Batch, EvalTransform
from mambar.evaluation.frozen_features import (
    FEATURES,
    PROTOCOLS,
    FrozenScore,
    evaluate_features,
    own_logits,
    pooled_rows,
    read_features,
    read_labels,
)
from mambar.models.protocol import TokenModel
from mambar.nn import Tokens
from mambar.recipes.feature_extraction import check_selection, extraction, feature_directory, open_splits


@dataclass(frozen=True, kw_only=True)
class FrozenResult:
    """The accuracy of a model's frozen features.

    Attributes:
        model: Name of the model.
        data: Name of the dataset.
        scores: One entry for each feature, protocol and setting.
        top1: Accuracy (0-1) of the model's own classifier; None if it has none for these classes.
        num_train: Number of training images.
    """

    model: str
    data: str
    scores: tuple[FrozenScore, ...]
    top1: float | None
    num_train: int

    def to_dict(self) -> dict[str, object]:
        """All fields as JSON values."""
        return {"format_version": 1, **asdict(self)}


def evaluate_frozen_features(
    source: str | Path,
    *,
    protocols: Sequence[str] = ("knn",),
    features: Sequence[str] = ("register_mean_avg",),
    data: str | None = None,
    split: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
    num_workers: int = 0,
    features_dir: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> FrozenResult | None:
    """Accuracy of frozen features: fitted on the training images, measured on those of `split`.

    source: a run directory, a checkpoint, a model's name or timm/NAME. protocols: keys of `PROTOCOLS`. features: keys
    of `FEATURES`. features_dir: where the features are stored, by default a temporary directory; all processes
    must have access to it. Returns None on every rank but the first.
    """
    check_selection("protocol", protocols, PROTOCOLS)
    check_selection("features", features, FEATURES)
    data, splits, split = open_splits(source, data, split, data_options)
    classes = splits[split].classes
    with feature_directory(features_dir) as own:
        with extraction(
            source,
            splits,
            own,
            pretrained=pretrained,
            img_size=img_size,
            batch_size=batch_size,
            device=device,
            num_workers=num_workers,
        ) as run:
            group, analyzed = run.group, run.analyzed
            transform = EvalTransform(preprocessing=analyzed.preprocessing).pixels
            has_classifier = analyzed.classes is not None and tuple(analyzed.classes) == tuple(classes)
            for name in splits:
                classifier = analyzed.model if name == split and has_classifier else None
                run.write(name, transform, partial(_rows, names=features, classifier=classifier), progress)
            group.barrier()
        if not group.is_main:
            return None
        top1 = _own_top1(run.directory / split) if has_classifier else None
        found = {name: read_features(run.directory / name, features, num_images=len(splits[name])) for name in splits}
        train, test = found["train"], found[split]
        scores = evaluate_features(
            train, test, num_classes=len(classes), protocols=protocols, device=group.device, seed=seed
        )
    return FrozenResult(model=analyzed.name, data=data, scores=tuple(scores), top1=top1, num_train=len(train.labels))


def _rows(
    tokens: Tokens, batch: Batch, *, names: Sequence[str], classifier: TokenModel | None
) -> dict[str, np.ndarray]:
    """`pooled_rows`, and with `classifier` also the class that its own classifier predicts."""
    found = pooled_rows(tokens, batch, names=names)
    if classifier is not None:
        found["predicted"] = own_logits(classifier, tokens, batch.images).float().argmax(1).cpu().numpy()
    return found


def _own_top1(directory: Path) -> float:
    labels = read_labels(directory)
    predicted = np.fromfile(directory / "predicted", dtype=np.int64)
    return float((predicted == labels)[labels >= 0].mean())
