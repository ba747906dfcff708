"""A gallery image: the input and, for each quantity, one map per model on a common scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import MapStyle, map_html, photograph_html, resized
from mambar.analysis.draw.norm_panels import panel_scale, scale_legend, summary
from mambar.analysis.draw.plots import label_text, new_axes, sign, styled
from mambar.analysis.figure_label import FigureLabel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True, kw_only=True, eq=False)
class MapRow:
    """One quantity: a map per model (None if it has none), all on one linear or logarithmic scale."""

    name: str
    maps: Mapping[str, Float[np.ndarray, "rows cols"] | None]
    scale: Literal["linear", "log"] = "linear"

    def limits(self) -> tuple[float, float]:
        """The limits of the scale, in the units of the maps."""
        given = [values for values in self.maps.values() if values is not None]
        if self.scale == "log":
            given = [np.where(values > 0, values, np.nan) for values in given]
        return panel_scale(given)

    def placed(self, values: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, "rows cols"]:
        """The values that are mapped to colors: unchanged, or their log10."""
        if self.scale == "linear":
            return values
        return np.log10(np.maximum(values, max(self.limits()[0], 1e-300)))

    def placed_limits(self) -> tuple[float, float]:
        """The limits of the scale of `placed` values."""
        low, high = self.limits()
        if self.scale == "linear":
            return low, high
        return float(np.log10(max(low, 1e-300))), float(np.log10(max(high, 1e-300)))


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryImage:
    """One image with its rows; `registers` holds the register maps (registers, rows, cols) of each model."""

    name: str
    image: UInt8[np.ndarray, "channels height width"]
    rows: Sequence[MapRow]
    registers: Mapping[str, Float[np.ndarray, "registers rows cols"]]
    label: FigureLabel
    register_label: FigureLabel


def gallery_html(shown: GalleryImage, style: MapStyle) -> html.Html:
    """The image with its rows and register maps."""
    models = list(shown.rows[0].maps)
    columns = f"--maps:{len(models)}"
    inside = html.element("div", html.element("div", photograph_html(shown.image, shown.name)), class_="pair")
    blocks = [html.element("div", html.element("div", "Input", class_="name"), inside, class_="block")]
    blocks += [_block(row, style, named=len(models) > 1) for row in shown.rows]
    figures = [html.figure(html.element("div", *blocks, class_="blocks", style=columns), caption=shown.label.line())]
    figures += [
        _register_figure(name, maps, shown.register_label, style)
        for name, maps in shown.registers.items()
        if len(maps) > 1
    ]
    return html.join([html.element("h3", shown.name), *figures])


def _block(row: MapRow, style: MapStyle, *, named: bool) -> html.Html:
    """One quantity: its name, the maps of all models side by side, and their common color scale."""
    cells = []
    for model, values in row.maps.items():
        picture, *numbers = _map(row, values, style)
        name_below = html.element("div", model, class_="model") if named else ""
        cells.append(html.element("div", picture, name_below, *numbers))
    log = " (log)" if row.scale == "log" else ""
    return html.element(
        "div",
        html.element("div", row.name + log, class_="name"),
        html.element("div", *cells, class_="pair"),
        scale_legend(*row.limits(), style.colormap),
        class_="block",
    )


def _map(row: MapRow, values: Float[np.ndarray, "rows cols"] | None, style: MapStyle) -> list[html.Html]:
    """The map and its numbers."""
    if values is None:
        return [html.element("div", "none", class_="value")]
    low, high = row.placed_limits()
    numbers = summary(values)
    picture = map_html(row.placed(values), f"{row.name}: {', '.join(numbers)}", low=low, high=high, style=style)
    return [picture, html.element("div", *(html.element("div", line) for line in numbers), class_="value")]


def _register_figure(
    model: str, maps: Float[np.ndarray, "registers rows cols"], label: FigureLabel, style: MapStyle
) -> html.Html:
    low, high = panel_scale(list(maps))
    cells = []
    for place, values in enumerate(maps):
        picture = map_html(values, f"map of register {place}", low=low, high=high, style=style)
        cells.append(html.element("div", picture, html.element("div", str(place), class_="value")))
    lines = (f"{model}: similarity of each register to the image tokens", label.line())
    return html.figure(
        html.element("div", *cells, class_="maps"),
        scale_legend(low, high, style.colormap),
        caption=html.join(html.element("div", line) for line in lines),
    )


@styled
def draw_gallery(shown: GalleryImage, style: MapStyle) -> "Figure":
    """The image and its rows as one figure."""
    models = list(shown.rows[0].maps)
    columns = len(shown.rows) + 1
    figure, axes = new_axes(columns * len(models), columns=columns, size=(1.9, 2.05 + 0.85 / len(models)))
    # Square images are lower than their columns, so their titles need extra space above.
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 0.96))
    grid = np.array(axes).reshape(len(models), columns)
    for name, first in zip(models, grid[:, 0], strict=True):
        _draw_image(first, shown.image)
        first.set_ylabel(label_text(name), fontsize=7.5)
    grid[0, 0].set_title(label_text(shown.name), fontsize=8)
    for row, column in zip(shown.rows, grid.T[1:], strict=True):
        limits = row.placed_limits()
        pictures = []
        for axis, values in zip(column, row.maps.values(), strict=True):
            if values is None:
                axis.set_axis_off()
            else:
                pictures.append(_draw_map(axis, row.placed(values), limits, style))
        log = ", log10" if row.scale == "log" else ""
        column[0].set_title(f"{row.name}{log}", fontsize=8)
        if pictures:
            _color_bar(pictures[-1], list(column), shrink=0.9, aspect=30)
    sign(figure, shown.label.line())
    return figure


@styled
def draw_registers(shown: GalleryImage, model: str, style: MapStyle) -> "Figure":
    """The register maps of one model as one figure."""
    maps = shown.registers[model]
    limits = panel_scale(list(maps))
    figure, axes = new_axes(len(maps) + 1, columns=min(7, len(maps) + 1), size=(1.35, 1.5))
    _draw_image(axes[0], shown.image)
    axes[0].set_title("input", fontsize=7.5)
    pictures = [_draw_map(axis, values, limits, style) for axis, values in zip(axes[1:], maps, strict=True)]
    for place, axis in enumerate(axes[1:]):
        axis.set_title(f"register {place}", fontsize=7.5)
    _color_bar(pictures[-1], axes, shrink=0.5, aspect=40)
    sign(figure, f"{model} · {shown.register_label.line()}")
    return figure


def _draw_image(axes: "Axes", image: UInt8[np.ndarray, "channels height width"]) -> None:
    _hide_frame(axes)
    pixels = np.moveaxis(image if len(image) == 3 else np.repeat(image[:1], 3, axis=0), 0, -1)
    axes.imshow(pixels, interpolation="nearest" if max(image.shape) <= 96 else "antialiased")


def _draw_map(
    axes: "Axes", values: Float[np.ndarray, "rows cols"], limits: tuple[float, float], style: MapStyle
) -> "AxesImage":
    _hide_frame(axes)
    if style.resampling == "bicubic":
        values = resized(values, (values.shape[0] * 16, values.shape[1] * 16))
    low, high = limits
    top = high if high > low else low + 1
    return axes.imshow(values, vmin=low, vmax=top, cmap=style.colormap, interpolation="nearest")


def _hide_frame(axes: "Axes") -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _color_bar(picture: "AxesImage", axes: "list[Axes]", *, shrink: float, aspect: float) -> None:
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=shrink, aspect=aspect)
    bar.ax.tick_params(labelsize=6.5)
