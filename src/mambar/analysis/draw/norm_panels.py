"""Norm maps side by side: an image and the token-norm maps of several models on one color scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Shaped

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import MapStyle, color_scale, colorbar_png, map_html, photograph_html, to_uint8
from mambar.analysis.figure_label import FigureLabel, layer_name, listed, size_text
from mambar.analysis.measure.activations import layer_indices, model_device
from mambar.analysis.measure.norms import token_norms
from mambar.models.protocol import Images, TokenModel, TokenTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class NormPanel:
    """One row: an image and a map for each named model; all maps share one scale."""

    image: Shaped[np.ndarray, "channels height width"]
    maps: Mapping[str, Float[np.ndarray, "rows cols"]]
    caption: str
    label: FigureLabel = field(default_factory=FigureLabel)


def compare_norms(
    models: Mapping[str, TokenModel],
    images: Images,
    *,
    shown: Sequence[Shaped[np.ndarray, "channels height width"]] | None = None,
    captions: Sequence[str] | None = None,
    layer: int = -1,
    tensor: TokenTensor = "residual",
    label: FigureLabel | None = None,
) -> list[NormPanel]:
    """One row per image: the token-norm map after `layer` of each named model.

    `shown` are the displayed images (default: `images`, scaled to 0-255). Tensor, metric, layer and input of the label
    are set here, and the model if the label has none.
    """
    label = label or FigureLabel()
    names = {layer_name(layer_indices(model, [layer])[0], model.num_layers) for model in models.values()}
    label = replace(
        label,
        tensor=tensor,
        metric="L2 norm of each image token",
        layer=listed(sorted(names)),
        model=label.model or listed(models),
        input=size_text((images.shape[-2], images.shape[-1])),
    )
    maps = {
        name: token_norms(model, images.to(model_device(model)), [layer], tensor=tensor)[0].float().cpu().numpy()
        for name, model in models.items()
    }
    pictures = shown if shown is not None else list(images.cpu().numpy())
    return [
        NormPanel(
            image=pictures[index],
            maps={name: values[index] for name, values in maps.items()},
            caption=captions[index] if captions else "",
            label=label,
        )
        for index in range(len(images))
    ]


def panel_scale(maps: Sequence[Float[np.ndarray, "rows cols"]]) -> tuple[float, float]:
    """The smallest and the largest finite value of all maps."""
    finite = [values[np.isfinite(values)] for values in maps]
    values = np.concatenate([*finite, np.zeros(0)])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def number(value: float) -> str:
    """The number with three significant digits, with an exponent only if very large or small."""
    if not np.isfinite(value):
        return "not finite"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def panel(row: NormPanel) -> html.Html:
    """The row as HTML: image, maps with their median and maximum, color scale, caption."""
    low, high = panel_scale(list(row.maps.values()))
    _, height, width = row.image.shape
    cells = [_cell("Input", photograph_html(to_uint8(row.image), "input image"), f"{width} × {height} px")]
    for name, values in row.maps.items():
        rows, cols = values.shape
        description = f"norm map of {name}: {', '.join(summary(values))}"
        shown = map_html(values, description, color_scale(low, high), MapStyle())
        cells.append(_cell(name, shown, *summary(values), f"{cols} × {rows} tokens"))
    return html.figure(
        html.element("div", *cells, class_="panel", style=f"--columns:{len(cells)}"),
        scale_legend(low, high, "L2 norm"),
        caption=html.join([html.element("div", row.caption), html.element("div", row.label.line())]),
    )


def summary(values: Float[np.ndarray, "rows cols"]) -> tuple[str, ...]:
    """Median, maximum and their ratio as text; of a signed quantity minimum, median and maximum."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ("no finite value",)
    lowest, median, highest = float(finite.min()), float(np.median(finite)), float(finite.max())
    if lowest < 0:
        return f"min {number(lowest)}", f"median {number(median)}", f"max {number(highest)}"
    ratio = f" ({highest / median:.1f}×)" if median > 0 else ""
    return f"median {number(median)}", f"max {number(highest)}{ratio}"


def scale_legend(low: float, high: float, quantity: str, colormap: str = "viridis") -> html.Html:
    """The color bar with its limits and the name of the quantity."""
    bar = html.image(colorbar_png(colormap), description=f"color bar of {quantity}, low at the left")
    ends = (html.element("span", number(low)), bar, html.element("span", number(high)))
    return html.join([html.element("div", *ends, class_="scale"), html.element("div", quantity, class_="quantity")])


def _cell(name: str, picture: html.Html, *values: str) -> html.Html:
    lines = (html.element("div", value) for value in values)
    parts = (html.element("div", name, class_="name"), picture, html.element("div", *lines, class_="value"))
    return html.element("div", *parts)
