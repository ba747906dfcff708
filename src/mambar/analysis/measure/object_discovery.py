"""Object discovery without labels: LOST (arXiv 2109.14279) on the patch tokens of a layer, and its CorLoc.

The seed is the patch with the fewest positive correlations, because objects are smaller than the background. Patches
that are correlated with the seed, among those with the next fewest, vote for every patch; the box surrounds the patches
with a positive vote that are connected with the seed.

"Vision Transformers Need Registers" (arXiv 2309.16588) measures artifacts in this way, on other features for each
model and with a bias. The choices are the fields of `LostOptions`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.probes import wilson_interval
from mambar.data.boxed_images import object_boxes
from mambar.data.dataset import ImageDataset, Sample
from mambar.data.loading.loaders import evaluation_batches
from mambar.errors import InputError
from mambar.json_fields import check_choices
from mambar.models.protocol import TokenTensor
from mambar.nn.placement import Grid


@dataclass(frozen=True, kw_only=True)
class LostOptions:
    """The choices of LOST; the defaults are those of its paper, except for `tensor`.

    Attributes:
        tensor: The features. The paper uses the keys of a ViT's last attention layer, which a Mamba does not have.
        similarity: "dot" product or "cosine" of two features. A dot product is divided by the mean squared norm of the
            image's features, so that `bias` has one scale.
        center: "image" subtracts the image's mean feature first.
        bias: Added to every similarity.
        seed: The patch with the "fewest" or the "most" positive similarities.
        num_candidates: Number of patches with the fewest (or most) positive similarities that may vote.
        min_iou: IoU from which a box is correct.
    """

    tensor: TokenTensor = "normed"
    similarity: Literal["dot", "cosine"] = "dot"
    center: Literal["none", "image"] = "none"
    bias: float = 0.0
    seed: Literal["fewest", "most"] = "fewest"
    num_candidates: int = 100
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        ranges = {"bias": (-math.inf, math.inf), "num_candidates": (1, 10**9), "min_iou": (1e-6, 1.0)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int if name == "num_candidates" else int | float) or not low <= value <= high:
                raise InputError(f"{name}={value!r} is not a number from {low:g} to {high:g}.")

    def text(self) -> str:
        """All choices as `name=value`, for reports."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


class LostResult(NamedTuple):
    """The object of one image.

    Attributes:
        box: (x0, y0, x1, y1) in patches, right and bottom exclusive.
        seed: (row, column) of the seed patch.
        degrees: Number of other patches with a positive similarity to each patch.
    """

    box: tuple[int, int, int, int]
    seed: tuple[int, int]
    degrees: Int64[Tensor, "rows cols"]


def lost(features: Float[Tensor, "patches dim"], grid: Grid, options: LostOptions | None = None) -> LostResult:
    """The object that LOST finds in the patch features (row by row) of one image."""
    from skimage.measure import label

    options = options or LostOptions()
    values = features.detach().cpu().double()
    if options.center == "image":
        values = values - values.mean(0)
    norms = values.norm(dim=1, keepdim=True)
    scale = norms if options.similarity == "cosine" else norms.square().mean().sqrt()
    values = values / scale.clamp_min(1e-12)
    similarity = values @ values.T + options.bias
    degrees = (similarity > 0).sum(1) - (similarity.diagonal() > 0).long()
    order = degrees.argsort(stable=True, descending=options.seed == "most")
    seed, candidates = int(order[0]), order[: options.num_candidates]
    voters = candidates[similarity[seed, candidates] > 0]
    votes = similarity[voters].sum(0) > 0
    votes[seed] = True
    place = (seed // grid[1], seed % grid[1])
    components = np.asarray(label(votes.reshape(grid).numpy(), connectivity=1))
    rows, cols = (components == components[place]).nonzero()
    box = (int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1)
    return LostResult(box, place, degrees.reshape(grid))


@dataclass(frozen=True, kw_only=True)
class LayerDiscovery:
    """Boxes of one layer against the objects' boxes.

    Attributes:
        layer: Number of the layer; None for the box around the whole image, the baseline.
        corloc: Share (0-1) of the images whose box has an IoU of at least `min_iou` with one of the objects' boxes.
        low, high: 95 % Wilson interval of `corloc`.
        iou: Largest IoU with an object's box, mean over images.
        num_images: Number of images with a box inside the crop.
    """

    layer: int | None
    corloc: float
    low: float
    high: float
    iou: float
    num_images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownObject:
    """An image with the objects' boxes and, for the last layer, LOST's box and seed; all in pixels."""

    image: UInt8[np.ndarray, "channels height width"]
    boxes: Float[np.ndarray, "boxes 4"]
    found: tuple[float, ...]
    seed: tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Discovery:
    """The objects that LOST finds with one model; the last entry of `layers` is the baseline."""

    options: LostOptions
    layers: tuple[LayerDiscovery, ...]
    shown: tuple[ShownObject, ...]


@dataclass(frozen=True)
class _WithBoxes:
    """Preprocessed images with their boxes in pixels of the crop."""

    analyzed: AnalyzedModel

    def transform_sample(self, sample: Sample, key: int) -> Mapping[str, Any]:
        boxes = self.analyzed.resize_boxes(object_boxes(sample), *sample.image.shape[1:])
        return {"images": self.analyzed.preprocess(sample.image), "boxes": boxes}


def discover_objects(
    analyzed: AnalyzedModel,
    dataset: ImageDataset,
    options: LostOptions,
    layers: Sequence[int],
    *,
    num_images: int = 1000,
    num_shown: int = 6,
    batch_size: int = 16,
    num_workers: int = 0,
) -> Discovery:
    """LOST on the given layers for up to `num_images` images, and CorLoc for those with boxes or a mask.

    `num_shown` images, evenly spaced over the data, are kept for a figure.
    """
    from torchvision.ops import box_iou

    size = analyzed.model.patch_size
    height, width = analyzed.preprocessing.size
    whole = (0.0, 0.0, float(width), float(height))
    count = min(len(dataset), num_images)
    kept = {place * count // num_shown for place in range(num_shown)}
    overlaps: list[list[float]] = []
    shown = []
    batches = evaluation_batches(dataset, _WithBoxes(analyzed), batch_size=batch_size, num_workers=num_workers)
    for batch in batches:
        found = capture_activations(analyzed.model, batch.images, {options.tensor: list(layers)})[options.tensor]
        for place, (index, boxes) in enumerate(zip(batch.indices.tolist(), batch["boxes"], strict=True)):
            if index >= count:
                break
            results = [lost(tokens.patches[place], tokens.grid, options) for tokens in found]
            pixels = [tuple(float(side * size) for side in result.box) for result in results] + [whole]
            if len(boxes):
                overlaps.append(box_iou(torch.tensor(pixels), boxes).amax(1).tolist())
            if index in kept:
                image = analyzed.preprocessing.denormalize(batch.images[place].cpu()).numpy()
                row, col = results[-1].seed
                seed = ((col + 0.5) * size, (row + 0.5) * size)
                shown.append(ShownObject(image=image, boxes=boxes.numpy(), found=pixels[-2], seed=seed))
        if batch.indices[-1] >= count - 1:
            break
    rows = []
    for place, layer in enumerate([*layers, None]):
        ious = [each[place] for each in overlaps]
        correct = sum(iou >= options.min_iou for iou in ious)
        low, high = wilson_interval(correct, len(ious))
        share, mean = (correct / len(ious), sum(ious) / len(ious)) if ious else (math.nan, math.nan)
        rows.append(LayerDiscovery(layer=layer, corloc=share, low=low, high=high, iou=mean, num_images=len(ious)))
    return Discovery(options=options, layers=tuple(rows), shown=tuple(shown))
