"""The report of a run that predicts pixels: validation images beside the prediction of their patches."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import photograph_html
from mambar.data.dataset import ImageDataset
from mambar.data.loading.unreadable_images import evenly_spaced_samples
from mambar.data.transforms.classification import EvalTransform
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.nn.eval_mode import eval_mode

_NUM_SHOWN: Final = 6
_GRAY: Final = 128
_NOTE: Final = (
    "Evenly spaced validation images. The network predicts normalized pixels: mean and contrast of a patch are those "
    "of the image. Autoregressive: each cluster is predicted from the preceding clusters of the image."
)


@torch.no_grad()
def predicted_images(
    model: Any, images: Float[Tensor, "batch channels height width"], preprocessing: Preprocessing
) -> dict[str, UInt8[np.ndarray, "batch channels rows cols"]]:
    """Pictures of normalized images: the image, its patches that are not predicted, and the prediction.

    model: as built by a `PixelPredictionTask`. It predicts normalized pixels, so the mean and the deviation of a
    predicted patch are those of the image.
    """
    weight, size = next(model.parameters()), model.backbone.patch_size
    rows, cols = model.backbone.patch_embed.grid(images)
    images = images[:, :, : rows * size, : cols * size]
    with eval_mode(model):
        numbers = model.predicted_patches(images)
        found = model(images.to(weight.device, weight.dtype))[0].float().cpu().reshape(*numbers.shape, -1)
    patches = functional.unfold(images.float(), size, stride=size).transpose(1, 2)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    places = numbers[:, :, None].expand_as(found)
    pixels = found * deviation.expand_as(patches).gather(1, places) + mean.expand_as(patches).gather(1, places)
    predicted = patches.scatter(1, places, pixels)
    unknown = torch.zeros_like(patches).scatter(1, places, 1.0)

    def folded(values: Tensor) -> Tensor:
        return functional.fold(values.transpose(1, 2), (rows * size, cols * size), size, stride=size)

    shown = preprocessing.denormalize(images)
    given = torch.where(folded(unknown) > 0, _GRAY, shown).to(torch.uint8)
    prediction = preprocessing.denormalize(folded(predicted))
    return {"image": shown.numpy(), "not predicted": given.numpy(), "prediction": prediction.numpy()}


def contents(
    model: Any, *, metrics: Mapping[str, float], val_set: ImageDataset, preprocessing: Preprocessing
) -> dict[str, Any]:
    """The arguments of `write_run_report`: metrics, and some validation images with the prediction."""
    transform = EvalTransform(preprocessing=preprocessing)
    samples = evenly_spaced_samples(val_set, _NUM_SHOWN)
    images = torch.stack([preprocessing.normalize(transform.pixels(sample.image)) for sample in samples])
    content: list[object] = [html.element("p", _NOTE, class_="note")]
    for name, pictures in predicted_images(model, images, preprocessing).items():
        cells = (html.element("div", photograph_html(picture, name)) for picture in pictures)
        content.append(html.element("h3", name.capitalize()))
        content.append(html.element("div", *cells, class_="panel", style=f"--columns:{len(pictures)}"))
    summary = {name: f"{value:.4f}" for name, value in metrics.items()}
    return {"summary": summary, "sections": [html.section("Predicted pixels", *content)]}
