"""Configuration and image processor of the transformers models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from mambar.data.transforms.classification import EvalTransform
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.deprecated import MODEL_FIELDS, MODEL_VALUES, translate
from mambar.errors import InputError
from mambar.image_file import upright_rgb
from mambar.models.config import VisionMambaConfig

MODEL_TYPE = "mambar"

_FIELDS = {field.name: field.default for field in dataclasses.fields(VisionMambaConfig) if field.name != "num_classes"}


class MambarConfig(BackboneConfigMixin, PreTrainedConfig):
    """The fields of `VisionMambaConfig`, with transformers' `num_labels` in place of num_classes.

    Args:
        out_features: stages that a backbone returns, of stem, stage1, … (stage k is after block k-1).
        out_indices: the same as indices.
        pyramid: resample four maps to strides of about 4, 8, 16 and 32 pixels.
        pyramid_norm: a key of `mambar.nn.pyramid.MAP_NORMS`.
    """

    model_type = MODEL_TYPE
    attribute_map = {  # noqa: RUF012
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_channels": "in_chans",
        "image_size": "img_size",
    }

    def __init__(
        self,
        *,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        pyramid: bool = False,
        pyramid_norm: str = "group",
        **fields: Any,
    ) -> None:
        # A config.json written by version 0.1 has the old field names.
        fields = translate(fields, {**MODEL_FIELDS, **self.attribute_map}, MODEL_VALUES)
        own = {name: fields.pop(name, default) for name, default in _FIELDS.items()}
        fields.pop("stage_names", None)
        if not fields.get("id2label") and fields.get("num_labels") is None:
            fields["num_labels"] = VisionMambaConfig.num_classes
        super().__init__(**fields)
        # Values are checked by VisionMambaConfig when the model is built.
        for name, value in own.items():
            setattr(self, name, value)
        self.pyramid, self.pyramid_norm = pyramid, pyramid_norm
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, self.depth + 1))]
        self.set_output_features_output_indices(
            out_features=None if out_features is None else list(out_features),
            out_indices=None if out_indices is None else list(out_indices),
        )

    def model_config(self, *, num_classes: int | None = None) -> VisionMambaConfig:
        """The `VisionMambaConfig` of the model."""
        own = {name: getattr(self, name) for name in _FIELDS}
        return VisionMambaConfig.from_dict(
            {**own, "num_classes": self.num_labels if num_classes is None else num_classes}
        )

    @classmethod
    def from_model_config(
        cls, config: VisionMambaConfig, *, classes: Sequence[str] | None = None, **fields: Any
    ) -> "MambarConfig":
        """The transformers configuration of a `VisionMambaConfig`, with class names."""
        own = {name: value for name, value in config.to_dict().items() if name != "num_classes"}
        names = classes or [f"LABEL_{index}" for index in range(config.num_classes)]
        id2label = dict(enumerate(names))
        label2id = {name: index for index, name in id2label.items()}
        return cls(**own, id2label=id2label, label2id=label2id, **fields)


class MambarImageProcessor(BaseImageProcessor):
    """`EvalTransform` as an image processor of transformers, bit for bit."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, preprocessing: Mapping[str, Any] | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        # transformers writes it as JSON.
        self.preprocessing = Preprocessing.from_dict(preprocessing or {}).to_dict()

    @property
    def size(self) -> dict[str, int]:
        """Height and width of `pixel_values`, as transformers names them."""
        height, width = Preprocessing.from_dict(self.preprocessing).size
        return {"height": height, "width": width}

    @property
    def image_mean(self) -> list[float]:
        """The mean that is subtracted from each channel, on the scale 0-1."""
        return list(self.preprocessing["mean"])

    @property
    def image_std(self) -> list[float]:
        """The standard deviation by which each channel is divided."""
        return list(self.preprocessing["std"])

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> BatchFeature:
        """The model's input from one image or a list of images."""
        return self.preprocess(images, *arguments, **options)

    def preprocess(self, images: Any, *_: Any, return_tensors: str | None = None, **options: Any) -> BatchFeature:
        """`pixel_values` (batch, channels, height, width) from PIL images, uint8 arrays or uint8 tensors.

        Arrays are (height, width, channels), tensors (channels, height, width). A PIL image is rotated and converted
        to RGB as by `mambar.data.read_image`. Other options raise `InputError`: set `preprocessing` instead.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if options:
            raise InputError(f"The image processor of mambar has no option {', '.join(options)}; change preprocessing.")
        transform = EvalTransform(preprocessing=Preprocessing.from_dict(self.preprocessing))
        many = images if isinstance(images, list | tuple) else [images]
        pixels = [transform(_pixels(image)) for image in many]
        return BatchFeature({"pixel_values": torch.stack(pixels)}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        return {"image_processor_type": type(self).__name__, "preprocessing": self.preprocessing}


def _pixels(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1)
    tensor = torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) and image.ndim == 3 else image
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 3:
        raise InputError(
            f"An image is a PIL image, an array (height, width, channels) or a tensor (channels, height, width) of "
            f"uint8; got {type(image).__name__}."
        )
    return tensor
