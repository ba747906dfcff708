"""The detection model: torchvision's Faster R-CNN or Mask R-CNN on a feature pyramid of a token model's layers.

Memory is bounded by `max_size` (the long side after scaling), by `num_proposals` and `rois_per_image` in the heads, and
by `max_detections`: masks of 28 x 28 pixels are kept, and one at a time is scaled to the image.
"""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import ImageError, InputError
from mambar.models.layer_tokens import freeze_unused, layer_tokens, spaced_layers
from mambar.models.protocol import TokenModel
from mambar.nn.norm import RMSNorm
from mambar.nn.pyramid import FeaturePyramid, map_norm
from mambar.training import fields

_NUM_LAYERS: Final = 4
# Sides of the regions of interest that the heads of boxes and masks read.
_BOX_SIZE: Final = 7
_MASK_SIZE: Final = 14


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Configuration of the heads; the defaults are torchvision's."""

    # Classes without the background.
    num_classes: int = 80
    # Mask R-CNN: a mask for each box.
    masks: bool = False
    # Four backbone layers (from 0) for the pyramid. None: evenly spaced.
    layers: tuple[int, ...] | None = None
    # Channels of the pyramid, hidden width of the box head, and the normalization of maps ("group" or "batch").
    channels: int = 256
    head_dim: int = 1024
    norm: str = "group"
    # Images are scaled to this short side in pixels, as long as the long side does not exceed max_size.
    min_size: int = 800
    max_size: int = 1333
    # Short sides of which training draws one for each image, besides min_size.
    train_sizes: tuple[int, ...] = ()
    # Side of an anchor, in strides of its level.
    anchor_scale: float = 8.0
    # Proposals per image in evaluation; twice as many in training, of which rois_per_image are sampled.
    num_proposals: int = 1000
    rois_per_image: int = 512
    # Detections per image, at most, with at least this probability.
    max_detections: int = 100
    score_threshold: float = 0.05

    def __post_init__(self) -> None:
        count = ("1 to 100,000", lambda value: 1 <= value <= 100_000)
        names = ("num_classes", "channels", "head_dim", "num_proposals", "rois_per_image", "max_detections")
        sizes = ("1 to 8192 pixels", lambda value: 1 <= value <= 8192, ("min_size", "max_size"))
        drawn = ("sizes of 1 to 8192 pixels", lambda sides: all(1 <= side <= 8192 for side in sides), ("train_sizes",))
        scale = ("above 0, at most 1024", lambda value: 0 < value <= 1024, ("anchor_scale",))
        score = ("0 to below 1", lambda value: 0 <= value < 1, ("score_threshold",))
        fields.check_fields(self, ((*count, names), sizes, drawn, scale, score), prefix="task_options.")
        map_norm(self.norm, 8)

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The layers read of a backbone with `depth` blocks; raises `InputError` if they do not fit."""
        if self.layers is None:
            return spaced_layers(depth, _NUM_LAYERS)
        if len(self.layers) != _NUM_LAYERS or not all(0 <= layer < depth for layer in self.layers):
            raise InputError(f"layers={self.layers} must be {_NUM_LAYERS} backbone layers of 0 to {depth - 1}.")
        return self.layers

    def transform(self, preprocessing: Preprocessing, patch_size: int) -> GeneralizedRCNNTransform:
        """torchvision's scaling, normalization and padding, to whole patches and cells of the coarsest map."""
        return GeneralizedRCNNTransform(
            # In evaluation mode the last one is used.
            (*self.train_sizes, self.min_size),  # type: ignore[arg-type]
            self.max_size,
            list(preprocessing.mean),
            list(preprocessing.std),
            size_divisible=math.lcm(patch_size, strides(patch_size)[_NUM_LAYERS - 1]),
        )


def check_sides(images: Sequence[UInt8[Tensor, "3 _ _"]], max_size: int, *, name: str = "an image") -> None:
    """Raises ImageError for an image that is so narrow that scaling to `max_size` leaves less than a pixel."""
    for image in images:
        height, width = image.shape[1:]
        if max(height, width) >= max_size * min(height, width):
            raise ImageError(
                f"{name} of {width}x{height} pixels is too narrow for a long side of at most {max_size}; crop or "
                "remove it, or raise task_options.max_size."
            )


def strides(patch_size: int) -> list[int]:
    """The strides in pixels of the pyramid's levels and of the pooled one; InputError if one is not whole."""
    finest = patch_size >> max(round(math.log2(patch_size / 4)), 0)
    if finest << max(round(math.log2(patch_size / 4)), 0) != patch_size:
        raise InputError(f"patch_size={patch_size} gives a pyramid of fractional strides; use 2, 4, 8, 12, 16 or 32.")
    return [finest << level for level in range(_NUM_LAYERS + 1)]


class TokenPyramid(nn.Module):
    """The maps "0" to "3" and "pool" of a token model: four layers → norm → `FeaturePyramid` → torchvision's FPN."""

    def __init__(self, body: TokenModel, config: DetectorConfig) -> None:
        super().__init__()
        self.layers = config.layer_indices(body.num_layers)
        freeze_unused(body, self.layers)
        # torchvision requires an attribute of this name.
        self.out_channels = config.channels
        self.body = body
        self.norms = nn.ModuleList(RMSNorm(body.embed_dim) for _ in self.layers)
        self.pyramid = FeaturePyramid(body.embed_dim, body.patch_size, norm=config.norm)
        self.fpn = FeaturePyramidNetwork(
            [body.embed_dim] * _NUM_LAYERS,
            config.channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=partial(map_norm, config.norm),
        )

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        selected = layer_tokens(self.body, images, self.layers)
        maps = [
            dataclasses.replace(tokens, patches=norm(tokens.patches)).map()
            for norm, tokens in zip(self.norms, selected, strict=True)
        ]
        return self.fpn(OrderedDict((str(level), each) for level, each in enumerate(self.pyramid(maps))))


class Detector(nn.Module):
    """Boxes, classes and, with `masks`, masks of objects. Any `TokenModel` is the backbone; images have any size.

    Keyword arguments are fields of `DetectorConfig`, in place of those of `config`.

    Attributes:
        classes: class names of a trained model.
        preprocessing: mean and standard deviation of a trained model's images.
    """

    def __init__(self, backbone: TokenModel, config: DetectorConfig | None = None, **changes: Any) -> None:
        super().__init__()
        self.config = config = dataclasses.replace(config or DetectorConfig(), **changes)
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.patch_size = backbone.patch_size
        sides = [(config.anchor_scale * stride,) for stride in strides(self.patch_size)]
        channels, labels = config.channels, config.num_classes + 1
        heads: dict[str, Any] = {
            "box_roi_pool": _roi_pool(_BOX_SIZE, self.patch_size),
            "rpn_anchor_generator": AnchorGenerator(tuple(sides), ((0.5, 1.0, 2.0),) * len(sides)),
            "box_head": TwoMLPHead(channels * _BOX_SIZE**2, config.head_dim),
            "box_predictor": FastRCNNPredictor(config.head_dim, labels),
            "rpn_pre_nms_top_n_train": 2 * config.num_proposals,
            "rpn_post_nms_top_n_train": 2 * config.num_proposals,
            "rpn_pre_nms_top_n_test": config.num_proposals,
            "rpn_post_nms_top_n_test": config.num_proposals,
            "box_batch_size_per_image": config.rois_per_image,
            "box_detections_per_img": config.max_detections,
            "box_score_thresh": config.score_threshold,
        }
        kind = FasterRCNN
        if config.masks:
            kind = MaskRCNN
            heads["mask_roi_pool"] = _roi_pool(_MASK_SIZE, self.patch_size)
            heads["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
            heads["mask_predictor"] = MaskRCNNPredictor(channels, channels, labels)
        self.rcnn = kind(TokenPyramid(backbone, config), **heads)

    @property
    def backbone(self) -> nn.Module:
        """The token model."""
        return self.rcnn.backbone.get_submodule("body")

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The losses, in training mode. `sizes` are (height, width) without padding; labels in `targets` start at 1."""
        features = self._maps(images)
        batch, wanted = ImageList(images, list(sizes)), [dict(each) for each in targets]
        with torch.autocast(images.device.type, enabled=False):
            proposals, losses = self.rcnn.rpn(batch, features, wanted)
            _, others = self.rcnn.roi_heads(features, proposals, batch.image_sizes, wanted)
        return {**losses, **others}

    @torch.inference_mode()
    def detect(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> list[dict[str, Tensor]]:
        """For each image `boxes` in its own pixels, `labels` from 0, `scores`, and with masks `masks` of 28 x 28.

        The model is in evaluation mode; see `paste_mask` for the masks. On the CPU.
        """
        check_sides(images, self.config.max_size)
        weight = next(self.parameters())
        resize = self.config.transform(self.preprocessing or Preprocessing(), self.patch_size).eval()
        batch, _ = resize([image.to(weight.device, weight.dtype) / 255 for image in images])
        features = self._maps(batch.tensors)
        with torch.autocast(weight.device.type, enabled=False):
            proposals, _ = self.rcnn.rpn(batch, features)
            found, _ = self.rcnn.roi_heads(features, proposals, batch.image_sizes)
        results = []
        for image, size, each in zip(images, batch.image_sizes, found, strict=True):
            each["boxes"] = resize_boxes(each["boxes"], list(size), list(image.shape[1:]))
            each["labels"] = each["labels"] - 1
            results.append({name: each[name].cpu() for name in ("boxes", "labels", "scores", "masks") if name in each})
        return results

    def _maps(self, images: Float[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """The maps of the pyramid in the weights' dtype, in which the heads run without autocast.

        torchvision casts anchors and boxes to the dtype of maps and predictions. bfloat16 would round a coordinate
        above 1,024 pixels to a multiple of 8.
        """
        dtype = next(self.parameters()).dtype
        return {name: each.to(dtype) for name, each in self.rcnn.backbone(images).items()}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the backbone exempts from weight decay."""
        exempt = getattr(self.backbone, "no_weight_decay", set)
        return {f"rcnn.backbone.body.{name}" for name in exempt()}


def _roi_pool(size: int, patch_size: int) -> MultiScaleRoIAlign:
    """torchvision's pooling with the strides of the pyramid.

    By default it derives them from the first batch, rounded, and keeps them. With padded images they can be wrong, and
    a resumed run would differ from an unbroken one.
    """
    levels = strides(patch_size)[:_NUM_LAYERS]
    pool = MultiScaleRoIAlign([str(level) for level in range(_NUM_LAYERS)], output_size=size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in levels]
    first = round(math.log2(levels[0]))
    pool.map_levels = LevelMapper(first, first + _NUM_LAYERS - 1, pool.canonical_scale, pool.canonical_level)
    return pool


def paste_mask(
    mask: Float[Tensor, "1 rows cols"], box: Float[Tensor, "4"], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    """The mask of one detection at the size of its image."""
    return paste_masks_in_image(mask[None], box[None], size)[0, 0].numpy() >= 0.5
