"""Evaluation of frozen features on a dataset, with any number of processes."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mambar.analysis.analyzed_model import open_model
from mambar.data import EvalTransform, evaluation_batches, open_dataset
from mambar.data.loading.loaders import Batch
from mambar.errors import InputError
from mambar.evaluation import evaluate
from mambar.evaluation.frozen_features import (
    FEATURES,
    PROTOCOLS,
    FrozenScore,
    evaluate_features,
    read_features,
    write_features,
)
from mambar.training.checkpoint.run_directory import read_located_recipe
from mambar.training.distributed.environment import rank
from mambar.training.distributed.process_group import init_process_group
from mambar.training.fields import suggestion


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
    progress: Callable[[str, int], None] | None = None,
) -> FrozenResult | None:
    """Accuracy of frozen features: fitted on the training images, measured on those of `split`.

    source: a run directory, a checkpoint, a model's name or timm/NAME. protocols: keys of `PROTOCOLS`. features: keys
    of `FEATURES`. features_dir: where the features are stored, by default a temporary directory; all processes
    must have access to it. Returns None on every rank but the first.
    """
    _check("protocol", protocols, PROTOCOLS)
    _check("features", features, FEATURES)
    options = dict(data_options or {})
    if data is None:
        recipe = read_located_recipe(source)
        data, options = recipe.data, {**recipe.data_options, **options}
    split = split or "val"
    splits = {name: open_dataset(data, name, **options) for name in ("train", split)}
    classes = splits[split].classes
    kept = None if features_dir is None else Path(features_dir).expanduser()
    if kept is not None and kept.exists():
        raise InputError(f"{kept} exists; give a new directory for the features.")
    is_owner = kept is None and rank() == 0
    made = tempfile.TemporaryDirectory(prefix="mambar-features-") if is_owner else nullcontext()
    with made as own:
        with init_process_group(device) as group:
            analyzed = open_model(source, pretrained=pretrained, img_size=img_size, device=group.device)
            transform = EvalTransform(preprocessing=analyzed.preprocessing).pixels
            shared = {"device": group.device, "prepare": analyzed.preprocessing.normalize}

            def batches(name: str) -> Iterator[Batch]:
                return evaluation_batches(
                    splits[name],
                    transform,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    rank=group.rank,
                    world_size=group.world_size,
                    pin_memory=group.device.type == "cuda",
                )

            directory = Path(group.broadcast_object(str(kept or own)))
            for name, dataset in splits.items():
                (directory / name).mkdir(parents=True, exist_ok=True)
                report = None if progress is None else partial(progress, f"features of {name}")
                write_features(
                    analyzed.model,
                    batches(name),
                    directory / name,
                    num_images=len(dataset),
                    names=features,
                    progress=report,
                    **shared,
                )
            group.barrier()
            top1 = None
            if analyzed.classes is not None and tuple(analyzed.classes) == tuple(classes):
                module: Any = analyzed.model
                top1 = evaluate(module, batches(split), classes=classes, all_reduce=group.all_reduce, **shared).top1
        if not group.is_main:
            return None
        train, test = (read_features(directory / name, features, num_images=len(each)) for name, each in splits.items())
        scores = evaluate_features(
            train, test, num_classes=len(classes), protocols=protocols, device=group.device, seed=seed
        )
    return FrozenResult(model=analyzed.name, data=data, scores=tuple(scores), top1=top1, num_train=len(train.labels))


def _check(option: str, given: Sequence[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{option}={name} is not known; {suggestion(name, known)}")
