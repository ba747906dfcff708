"""The figures of arXiv 2405.14858 drawn from an `Analysis`: norm maps, distributions, feature and register maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from mambar.analysis.draw.figures import distribution_charts, layer_charts, probe_charts
from mambar.analysis.draw.image_maps import Map, MapGroup, draw_map_grid, norm_scale
from mambar.analysis.draw.plots import draw_chart_grid
from mambar.analysis.figure_label import layers_text, listed
from mambar.analysis.measure.feature_maps import GLOBAL_VECTORS, METRIC_NAMES
from mambar.analysis.numbers import Analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches of a chart, of which two are side by side on a page.
_CHART = (3.45, 2.1)


def norm_figures(analysis: Analysis) -> "dict[str, Figure]":
    """maps: norm maps of the gallery by layer; distributions: norms by layer; by_layer: norms and outliers."""
    metric = "L2 norm of each image token"
    label = analysis.label(tensor=analysis.options.tensor, metric=metric, layer="as titled")
    groups = []
    for layers in analysis.layer_columns():
        columns = {name: list(analysis.results[name].gallery_norms[layer].numpy()) for name, layer in layers.items()}
        scale = norm_scale(analysis.options.scale, [max(each.max() for each in maps) for maps in columns.values()])
        title = layers_text(layers.values()).capitalize()
        groups.append(MapGroup(name=title, quantity="L2 norm", columns=columns, scale=scale))
    distributions = distribution_charts(
        {name: found.norms for name, found in analysis.results.items()},
        analysis.layer_columns(),
        label,
        registers={name: found.registers_label for name, found in analysis.results.items()},
    )
    return {
        "maps": draw_map_grid(_images(analysis), groups, replace(label, data=analysis.gallery.name)),
        "distributions": draw_chart_grid(replace(distributions, size=_CHART)),
        "by_layer": draw_chart_grid(replace(layer_charts(analysis.results, replace(label, layer="all")), size=_CHART)),
    }


def feature_map_figure(analysis: Analysis) -> "Figure":
    """The feature map of each gallery image and model; each model has its own scale."""
    groups = {name: {"feature map": list(found.feature_map.numpy())} for name, found in analysis.results.items()}
    vectors = listed(GLOBAL_VECTORS.get(found.vector, found.vector) for found in analysis.results.values())
    return _last_layer_maps(analysis, groups, f"to {vectors}")


def register_map_figure(analysis: Analysis, model: str) -> "Figure":
    """The map of each register of one model, for each gallery image."""
    found = analysis.results[model]
    assert found.register_maps is not None
    names = [name.removeprefix("register ") for name in found.register_names]
    columns = dict(zip(names, found.register_maps.transpose(0, 1).numpy(), strict=True))
    return _last_layer_maps(analysis, {f"Registers of {model}": columns}, "to each register", [model])


def probe_figure(analysis: Analysis) -> "Figure":
    """Accuracy from pooled tokens, with 95 % intervals."""
    label = analysis.label(tensor="normed", layer="last", metric="cross-validated linear probe, 95 % intervals")
    return draw_chart_grid(probe_charts(analysis.results, label))


def _last_layer_maps(
    analysis: Analysis,
    groups: Mapping[str, Mapping[str, Sequence[Map]]],
    to: str,
    models: Sequence[str] | None = None,
) -> "Figure":
    """Title → column → maps, each title with its own color bar."""
    metric, distance = METRIC_NAMES[analysis.options.metric], analysis.options.metric == "l2"
    drawn = [
        MapGroup(name=title, quantity=f"{metric} (bright: similar)", columns=columns, small_is_bright=distance)
        for title, columns in groups.items()
    ]
    label = analysis.label(
        models, tensor=analysis.options.map_tensor, layer="last", metric=f"{metric} {to}", data=analysis.gallery.name
    )
    # Few maps fit one of two columns of a page.
    count = 1 + sum(len(columns) for columns in groups.values())
    return draw_map_grid(_images(analysis), drawn, label, width=3.45 if count < 4 else 6.9)


def _images(analysis: Analysis) -> list[UInt8[np.ndarray, "channels height width"]]:
    first = next(iter(analysis.results.values()))
    return [first.analyzed.pixels(image).numpy() for image in analysis.gallery.images.values()]
