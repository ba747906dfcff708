"""Norm maps side by side: one image, the token-norm map of several models, one colour scale for the row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from mambar.analysis.draw import html as report
from mambar.analysis.draw.color_maps import Resampling, as_bytes, map_picture, photograph, scale_bar
from mambar.analysis.figure_label import FigureLabel, layer_name
from mambar.analysis.measure.collect import model_device
from mambar.analysis.measure.norms import layer_indices, token_norms
from mambar.models.protocol import TokenModel, TokenTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class NormPanel:
    """One row: an image and a map for each named model; all maps share one scale."""

    image: Shaped[np.ndarray, "channels height width"]
    maps: Mapping[str, Float[np.ndarray, "rows cols"]]
    caption: str
    label: FigureLabel = field(default_factory=FigureLabel)


def compare_norms(
    models: Mapping[str, TokenModel],
    images: Float[Tensor, "batch channels height width"],
    *,
    shown: Sequence[Shaped[np.ndarray, "channels height width"]] | None = None,
    captions: Sequence[str] | None = None,
    layer: int = -1,
    tensor: TokenTensor = "residual",
    label: FigureLabel | None = None,
) -> list[NormPanel]:
    """One row an image: its token-norm map after `layer` of every named model, all reading the same `images`.

    `shown` are the pictures to show (default: the images themselves, stretched); the label's tensor, metric,
    layer and (where it has none) model are filled in here.
    """
    label = label or FigureLabel()
    names = {layer_name(layer_indices(model, [layer])[0], model.num_layers) for model in models.values()}
    label = replace(
        label,
        tensor=tensor,
        metric="L2 norm of each image token",
        layer=" and ".join(sorted(names)),
        model=label.model or " and ".join(models),
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
    """The scale that holds every map: from the smallest to the largest finite value."""
    finite = [values[np.isfinite(values)] for values in maps]
    values = np.concatenate([*finite, np.zeros(0)])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def number(value: float) -> str:
    """A number with three significant figures, without an exponent where it fits."""
    if not np.isfinite(value):
        return "not finite"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def panel(row: NormPanel, *, colours: str = "viridis", resampling: Resampling = "nearest") -> report.Html:
    """The row as HTML: image, maps, what each map's numbers are, the scale, the caption."""
    low, high = panel_scale(list(row.maps.values()))
    data, media_type = photograph(as_bytes(row.image))
    small = max(row.image.shape[1:]) <= 96
    input_picture = report.image(
        data, description="input image", media_type=media_type, class_="nearest" if small else None
    )
    _, height, width = row.image.shape
    cells = [_cell("Input", input_picture, f"{width} × {height} px")]
    for name, values in row.maps.items():
        picture = map_picture(values, low=low, high=high, colours=colours, resampling=resampling)
        rows, cols = values.shape
        shown = report.image(
            picture,
            description=f"norm map of {name}: {', '.join(summary(values))}",
            class_="nearest" if resampling == "nearest" else None,
        )
        cells.append(_cell(name, shown, *summary(values), f"{cols} × {rows} tokens"))
    columns = f"--columns:{len(cells)}"
    return report.figure(
        report.element("div", *cells, class_="panel", style=columns),
        scale_legend(low, high, colours),
        caption=report.join([report.element("div", row.caption), report.element("div", row.label.line())]),
    )


def summary(values: Float[np.ndarray, "rows cols"]) -> tuple[str, ...]:
    """Median, maximum and their ratio in words."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ("no finite value",)
    median, highest = float(np.median(finite)), float(finite.max())
    ratio = f" ({highest / median:.1f}×)" if median > 0 else ""
    return f"median {number(median)}", f"max {number(highest)}{ratio}"


def scale_legend(low: float, high: float, colours: str = "viridis") -> report.Html:
    """The colour bar with its two ends."""
    bar = report.image(scale_bar(colours), description="colour scale, low at the left")
    ends = (report.element("span", number(low)), bar, report.element("span", number(high)))
    return report.element("div", *ends, class_="scale")


def _cell(name: str, picture: report.Html, *values: str) -> report.Html:
    lines = (report.element("div", value) for value in values)
    return report.element(
        "div",
        report.element("div", name, class_="name"),
        picture,
        report.element("div", *lines, class_="value"),
    )
