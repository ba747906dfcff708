"""Predictions and maps of one or two models for one image, as arrays: classes, norms, feature and register maps."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.figure_label import size_text
from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.collect import CollectedNorms, NormCollector
from mambar.analysis.measure.feature_maps import DEFAULT_METRIC, feature_map, supported_vector
from mambar.analysis.measure.register_maps import register_map, register_names
from mambar.errors import InputError
from mambar.evaluation.prediction import Prediction, class_probabilities, top_classes
from mambar.version import __version__

FORMAT_VERSION = 2
METRIC = DEFAULT_METRIC


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelExplanation:
    """The results of one model for one image.

    Attributes:
        name: Name of the model.
        random_weights: True if the weights were never trained.
        predictions: The most probable classes; none without a classifier.
        norms: Norm maps and distributions of all layers.
        vector: The global vector of the feature maps.
        input_size: Width and height of the input in pixels, as text.
        feature_maps, register_maps: Maps of all layers; no register maps without registers.
        register_names: The name of each register, such as "class token" for that of a ViT.
        seconds: Run time of the parts `classes` and `maps`.
    """

    name: str
    random_weights: bool
    predictions: Sequence[Prediction]
    norms: CollectedNorms
    vector: str
    feature_maps: Float[Tensor, "layers rows cols"]
    register_maps: Float[Tensor, "layers registers rows cols"] | None
    input_size: str = ""
    register_names: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.feature_maps)

    def norm_maps(self) -> Float[Tensor, "layers rows cols"]:
        """The L2 norm of each patch token after every block."""
        return self.norms.maps[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The image as preprocessed by the first model, and the results of each model."""

    name: str
    image: UInt8[Tensor, "channels height width"]
    views: tuple[ModelExplanation, ...]

    @property
    def num_layers(self) -> int:
        """The number of blocks of the first model."""
        return self.views[0].num_layers

    def layer(self, view: ModelExplanation, layer: int) -> int:
        """The layer of a view at the same relative depth as `layer` of the first model."""
        if not 0 <= layer < self.num_layers:
            raise InputError(f"layer {layer} does not exist; the model has layers 0 to {self.num_layers - 1}.")
        return round(layer * (view.num_layers - 1) / max(self.num_layers - 1, 1))

    def to_dict(self, layer: int) -> dict[str, Any]:
        """The result as a JSON object: classes, norms of all layers in numbers, and the maps of one layer."""
        return {
            "format_version": FORMAT_VERSION,
            "mambar": __version__,
            "image": {"name": self.name, "height": self.image.shape[1], "width": self.image.shape[2]},
            "models": [_model_dict(view, self.layer(view, layer)) for view in self.views],
        }


def explain(
    analyzed_models: Sequence[AnalyzedModel], image: UInt8[Tensor, "channels height width"], *, name: str, top: int = 5
) -> Explanation:
    """Runs every model on one image; the image is shown as preprocessed by the first model."""
    return Explanation(
        name=name,
        image=analyzed_models[0].pixels(image),
        views=tuple(_explain_model(analyzed, image, top) for analyzed in analyzed_models),
    )


def _explain_model(analyzed: AnalyzedModel, image: Tensor, top: int) -> ModelExplanation:
    model, images = analyzed.model, analyzed.preprocess(image)[None]
    start = time.perf_counter()
    predictions = _predictions(analyzed, images, top)
    classified = time.perf_counter()
    found = capture_activations(model, images, {"residual": None, "normed": None})
    vector = supported_vector(model, found["normed"][-1], "register_mean")
    norms = NormCollector(range(model.num_layers), tensor="residual", keep=1, seed=0)
    norms.add(found["residual"])
    maps = [feature_map(model, tokens, vector=vector, metric=METRIC)[0] for tokens in found["normed"]]
    has_registers = found["normed"][-1].registers.shape[1] > 0
    registers = [register_map(tokens, metric=METRIC)[0] for tokens in found["normed"]] if has_registers else None
    return ModelExplanation(
        name=analyzed.name,
        random_weights=analyzed.random_weights,
        predictions=predictions,
        norms=norms.result(),
        vector=vector,
        feature_maps=torch.stack(maps).cpu(),
        register_maps=None if registers is None else torch.stack(registers).cpu(),
        input_size=size_text(analyzed.preprocessing.size, analyzed.trained_size),
        register_names=register_names(model, found["normed"][-1].registers.shape[1]),
        seconds={"classes": classified - start, "maps": time.perf_counter() - classified},
    )


def _predictions(analyzed: AnalyzedModel, images: Tensor, top: int) -> list[Prediction]:
    model: Any = analyzed.model
    if model.num_classes < 1:
        return []
    return top_classes(class_probabilities(model, images)[0], analyzed.classes, top)


def _model_dict(view: ModelExplanation, layer: int) -> dict[str, Any]:
    registers = view.register_maps
    return {
        "model": view.name,
        "random_weights": view.random_weights,
        "classes": [
            {"name": each.name, "index": each.index, "probability": _rounded(each.probability)}
            for each in view.predictions
        ],
        "seconds": dict(view.seconds),
        "norms": [
            {"layer": number, "patches": _rounded(patches.to_dict()), "registers": _rounded(own.to_dict())}
            for number, patches, own in zip(view.norms.layers, view.norms.patches, view.norms.registers, strict=True)
        ],
        "layer": layer,
        "norm_map": _rounded(view.norm_maps()[layer]),
        "feature_map": {"vector": view.vector, "metric": METRIC, "values": _rounded(view.feature_maps[layer])},
        "register_maps": None if registers is None else _rounded(registers[layer]),
    }


def _rounded(value: Any) -> Any:
    """Nested values with six significant digits; NaN and infinity are None, since JSON cannot represent them."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
