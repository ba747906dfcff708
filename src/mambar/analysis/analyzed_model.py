"""A model under analysis: the model with its name, preprocessing, classes and origin of its weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mambar.data import EvalTransform, Preprocessing
from mambar.errors import InputError
from mambar.hub.create import create_model
from mambar.hub.files import load
from mambar.hub.weights import TRAINED
from mambar.image_file import scaled_size
from mambar.messages import did_you_mean
from mambar.models.backbones import BACKBONES, Config, RegisteredConfig
from mambar.models.config import VARIANTS, VisionMambaConfig
from mambar.models.protocol import TokenModel
from mambar.models.timm_vit import TIMM_PREFIX
from mambar.nn.cuda_graph import use_cuda_graphs


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalyzedModel:
    """A model under analysis.

    Attributes:
        name: Name in figures and tables.
        model: The model.
        preprocessing: Preprocessing of its input.
        random_weights: True if the weights were never trained; figures carry a warning.
        classes: Class names, if known.
        trained_size: (height, width) in pixels of the training images, if known.
    """

    name: str
    model: TokenModel
    preprocessing: Preprocessing
    random_weights: bool = False
    classes: tuple[str, ...] | None = None
    trained_size: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of patches of the model's input."""
        height, width = self.preprocessing.size
        return height // self.model.patch_size, width // self.model.patch_size

    def pixels(self, image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "seen rows cols"]:
        """The resized and cropped image before normalization, with the model's number of channels."""
        channels = len(self.preprocessing.mean)
        if image.shape[0] != channels:
            gray = image.float().mean(0, keepdim=True).round().to(torch.uint8)
            image = gray.expand(channels, -1, -1)
        return EvalTransform(preprocessing=self.preprocessing).pixels(image)

    def preprocess(self, image: UInt8[Tensor, "channels height width"]) -> Float[Tensor, "seen rows cols"]:
        """The preprocessed image: the model's input."""
        return self.preprocessing.normalize(self.pixels(image))

    def resize_mask(self, mask: UInt8[Tensor, "height width"]) -> UInt8[Tensor, "rows cols"]:
        """A mask, resized (nearest neighbor) and cropped like the images."""
        nearest = replace(self.preprocessing, interpolation="nearest")
        return EvalTransform(preprocessing=nearest).pixels(mask[None])[0]

    def resize_boxes(self, boxes: Float[Tensor, "boxes 4"], height: int, width: int) -> Float[Tensor, "kept 4"]:
        """The boxes of an image of (height, width) pixels in the resized and cropped image; empty ones are dropped."""
        size = self.preprocessing.size
        rows, cols = scaled_size(height, width, size, self.preprocessing.crop_pct)
        top, left = round((rows - size[0]) / 2), round((cols - size[1]) / 2)
        scaled = boxes * torch.tensor([cols / width, rows / height] * 2) - torch.tensor([left, top] * 2)
        inside = scaled.clamp_min(0).minimum(torch.tensor([size[1], size[0]] * 2))
        return inside[(inside[:, 2:] > inside[:, :2]).all(1)]


def open_model(
    source: str | Path,
    *,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> AnalyzedModel:
    """The model that `source` names: a run directory, a checkpoint, a name of `create_model`, registered or timm/NAME.

    A name has random weights, drawn by `seed`, unless `pretrained`, which downloads. A name with a tag has those in
    `weights/`. Nothing else touches the network.
    """
    if Path(source).expanduser().exists() or str(source) in TRAINED:
        model = load(source)
        preprocessing = model.preprocessing or _preprocessing(model.config)
        name = Path(source).resolve().name
        size = preprocessing.size
        analyzed = AnalyzedModel(
            name=name, model=model, preprocessing=preprocessing, classes=model.classes, trained_size=size
        )
    else:
        analyzed = _named(str(source), pretrained=pretrained, img_size=img_size, seed=seed)
    if img_size is not None:
        preprocessing = replace(analyzed.preprocessing, img_size=img_size)
        analyzed = replace(analyzed, preprocessing=preprocessing)
    module: object = analyzed.model
    if isinstance(module, nn.Module):
        use_cuda_graphs(module.to(device).eval())
    return analyzed


def _named(source: str, *, pretrained: bool, img_size: int | tuple[int, int] | None, seed: int) -> AnalyzedModel:
    known = [*VARIANTS, *TRAINED, *BACKBONES]
    if source not in known and not source.startswith(TIMM_PREFIX):
        hint = did_you_mean(source, known, otherwise="`mambar info` lists the names.")
        raise InputError(f"There is no model {source!r}: no such run directory, checkpoint file or name; {hint}")
    # The same name and seed always give the same random weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = create_model(source, pretrained=pretrained, img_size=None if source in VARIANTS else img_size)
    preprocessing = model.preprocessing or _preprocessing(model.config)
    size = preprocessing.size if pretrained and source in VARIANTS else None
    return AnalyzedModel(
        name=source, model=model, preprocessing=preprocessing, random_weights=not pretrained, trained_size=size
    )


def _preprocessing(config: Config | None) -> Preprocessing:
    if isinstance(config, RegisteredConfig):
        return Preprocessing(img_size=config.img_size)
    if isinstance(config, VisionMambaConfig) and config.in_chans == 3:
        return Preprocessing(img_size=config.img_size)
    if isinstance(config, VisionMambaConfig) and config.in_chans == 1:
        return Preprocessing(img_size=config.img_size, mean=(0.5,), std=(0.5,))
    raise InputError("The model does not read gray or RGB images; only those can be shown.")
