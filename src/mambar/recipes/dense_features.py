"""Semantic segmentation with frozen patch tokens on images with masks, with any number of processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mambar.data import EvalTransform, Preprocessing, Sample
from mambar.data.loading.loaders import Batch
from mambar.data.segmentation.masks import Color, palette
from mambar.errors import DataError
from mambar.evaluation.dense_features import (
    DENSE_PROTOCOLS,
    NUM_EXAMPLES,
    DenseScore,
    dense_rows,
    evaluate_dense_features,
    read_dense,
)
from mambar.nn import Tokens
from mambar.recipes.feature_extraction import check_selection, extraction, feature_directory, open_splits
from mambar.segmentation.overlays import draw_overlay


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseResult:
    """Segmentation with the frozen patch tokens of a model.

    Attributes:
        model: Name of the model.
        data: Name of the dataset.
        img_size: (height, width) of the images in pixels.
        scores: One entry for each protocol.
        num_train: Number of training images.
        classes: Class names.
        palette: Color of each class.
        images: The first test images.
        masks: Their masks.
    """

    model: str
    data: str
    img_size: tuple[int, int]
    scores: tuple[DenseScore, ...]
    num_train: int
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    images: UInt8[np.ndarray, "examples channels height width"]
    masks: UInt8[np.ndarray, "examples height width"]

    def to_dict(self) -> dict[str, object]:
        """All numbers as JSON values."""
        scores = [
            {
                "protocol": score.protocol,
                "setting": score.setting,
                "miou_interval": [score.low, score.high],
                "count": score.count,
                **{
                    name: value
                    for name, value in score.result.to_dict().items()
                    if name not in ("format_version", "loss")
                },
            }
            for score in self.scores
        ]
        named = {"model": self.model, "data": self.data, "img_size": list(self.img_size), "num_train": self.num_train}
        return {"format_version": 1, **named, "scores": scores}

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """The first test images in columns: image, mask, and the prediction of each protocol."""
        gray = self.images.shape[1] == 1
        images = np.repeat(self.images, 3, 1) if gray else self.images
        rows = [
            np.moveaxis(images, 1, -1),
            *(
                np.stack([draw_overlay(*each, self.palette) for each in zip(images, masks, strict=True)])
                for masks in (self.masks, *(score.examples for score in self.scores))
            ),
        ]
        # Two white pixels between images.
        padded = [np.pad(row, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255) for row in rows]
        return np.concatenate([np.concatenate(list(row), 1) for row in padded])


@dataclass(frozen=True)
class _CropWithMask:
    """The evaluation crop of an image and of its mask."""

    preprocessing: Preprocessing

    def transform_sample(self, sample: Sample, key: int) -> Mapping[str, Any]:
        if sample.mask is None:
            raise DataError("an image has no mask; segmentation protocols need a mask for every image.")
        nearest = replace(self.preprocessing, interpolation="nearest")
        masks = EvalTransform(preprocessing=nearest).pixels(sample.mask[None])[0]
        return {"images": EvalTransform(preprocessing=self.preprocessing).pixels(sample.image), "masks": masks}


def evaluate_dense(
    source: str | Path,
    *,
    protocols: Sequence[str] = ("segmentation_knn",),
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
) -> DenseResult | None:
    """mIoU of frozen patch tokens: fitted on the training images, measured on those of `split`.

    source: a run directory, a checkpoint, a model's name or timm/NAME. protocols: keys of `DENSE_PROTOCOLS`. data: a
    segmentation dataset. features_dir: where the tokens are stored, by default a temporary directory; all processes
    must have access to it. Returns None on every rank but the first.
    """
    check_selection("protocol", protocols, DENSE_PROTOCOLS)
    data, splits, split = open_splits(source, data, split, data_options, kind="segmentation")
    classes = splits[split].classes
    if tuple(splits["train"].classes) != tuple(classes):
        raise DataError(f"data={data} has other classes in train than in {split}; give both the same.")
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
            transform = _CropWithMask(analyzed.preprocessing)
            shape = {"num_classes": len(classes), "patch_size": analyzed.model.patch_size}
            for name in splits:
                run.write(name, transform, partial(_rows, keep_masks=name == split, **shape), progress)
            group.barrier()
        if not group.is_main:
            return None
        read = {name: read_dense(run.directory / name, grid=analyzed.grid, **shape) for name in splits}
        train, test = read["train"], read[split]
        scores = evaluate_dense_features(
            train, test, classes=classes, protocols=protocols, device=group.device, seed=seed
        )
        shown = test.images[:NUM_EXAMPLES]
        assert test.masks is not None
        masks = np.array(test.masks[shown])
    height, width = masks.shape[1:]
    images = np.stack([analyzed.pixels(splits[split][int(index)].image).numpy() for index in shown])
    return DenseResult(
        model=analyzed.name,
        data=data,
        img_size=analyzed.preprocessing.size,
        scores=tuple(scores),
        num_train=len(train.images),
        classes=tuple(classes),
        palette=getattr(splits[split], "palette", ()) or palette(len(classes)),
        images=images[:, :, :height, :width],
        masks=masks,
    )


def _rows(
    tokens: Tokens, batch: Batch, *, num_classes: int, patch_size: int, keep_masks: bool
) -> dict[str, np.ndarray]:
    masks: Tensor = batch["masks"]
    return dense_rows(tokens, masks, num_classes=num_classes, patch_size=patch_size, keep_masks=keep_masks)
