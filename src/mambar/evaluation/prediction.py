"""Top-k class predictions for a single image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mambar.data.loading.images import read_image
from mambar.data.transforms.classification import EvalTransform
from mambar.errors import InputError
from mambar.image_file import MAX_PIXELS
from mambar.models.protocol import Images
from mambar.models.timm_vit import TimmViT, model_preprocessing
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.eval_mode import eval_mode


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted class.

    Attributes:
        name: class name, or the index as text if the model has no class names.
        index: class index.
        probability: softmax probability (0-1).
    """

    name: str
    index: int
    probability: float


def predict_file(
    model: VisionMamba | TimmViT, path: Path, *, top: int = 5, max_pixels: int = MAX_PIXELS
) -> list[Prediction]:
    """The `top` most probable classes of an image file, best first; raises `ImageError` if it cannot be read."""
    return predict_image(model, read_image(path, max_pixels=max_pixels), top=top)


def predict_image(
    model: VisionMamba | TimmViT, image: UInt8[Tensor, "channels height width"], *, top: int = 5
) -> list[Prediction]:
    """The `top` most probable classes of an image, best first.

    Images are preprocessed by the model's `preprocessing`, or with timm's defaults at its image size.
    """
    if model.num_classes < 1:
        raise InputError("The model has num_classes=0, so it predicts no class; train a classifier first.")
    transform = EvalTransform(preprocessing=model_preprocessing(model))
    return top_classes(class_probabilities(model, transform(image)[None])[0], model.classes, top)


def class_probabilities(model: nn.Module, images: Images) -> Float[Tensor, "batch classes"]:
    """The softmax of the model's logits in evaluation mode, float32 and on the CPU."""
    with eval_mode(model), torch.inference_mode():
        return model(images.to(next(model.parameters()).device)).float().softmax(1).cpu()


def top_classes(probabilities: Float[Tensor, "classes"], names: Sequence[str] | None, top: int) -> list[Prediction]:
    """The `top` most probable classes, best first, named by `names` or by their indices."""
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        Prediction(name=names[int(index)] if names else str(index), index=index, probability=probability)
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
