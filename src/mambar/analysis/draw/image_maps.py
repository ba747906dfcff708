"""A gallery image: the input and, for each quantity, one map per model on a common scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import Resampling, map_png, photograph, resized
from mambar.analysis.draw.norm_panels import panel_scale, scale_legend, summary
from mambar.analysis.draw.plots import label_text, new_axes, sign, styled
from mambar.analysis.figure_label import FigureLabel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True, kw_only=True, eq=False)
class MapRow:
    """One quantity: a map for each named model (None: it has none), all in one scale, linear or logarithmic."""

    name: str
    maps: Mapping[str, Float[np.ndarray, "rows cols"] | None]
    scale: Literal["linear", "log"] = "linear"

    def limits(self) -> tuple[float, float]:
        """The scale's ends in the units of the maps."""
        given = [values for values in self.maps.values() if values is not None]
        if self.scale == "log":
            given = [np.where(values > 0, values, np.nan) for values in given]
        return panel_scale(given)

    def placed(self, values: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, "rows cols"]:
        """The values that are mapped to colors: linear, or their log10."""
        if self.scale == "linear":
            return values
        return np.log10(np.maximum(values, max(self.limits()[0], 1e-300)))

    def placed_limits(self) -> tuple[float, float]:
        """The ends of the scale of `placed` values."""
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


@dataclass(frozen=True, kw_only=True)
class MapStyle:
    """Colormap and resampling of maps."""

    colormap: str = "viridis"
    resampling: Resampling = "nearest"


def gallery_html(shown: GalleryImage, look: MapStyle) -> html.Html:
    """The image with its rows and register maps."""
    data, media_type = photograph(shown.image)
    kind = "nearest" if max(shown.image.shape[1:]) <= 96 else None
    picture = html.image(data, description=shown.name, media_type=media_type, class_=kind)
    models = list(shown.rows[0].maps)
    maps = f"--maps:{len(models)}"
    inside = html.element("div", html.element("div", picture), class_="pair")
    blocks = [html.element("div", html.element("div", "Input", class_="name"), inside, class_="block")]
    blocks += [_block(row, look, named=len(models) > 1) for row in shown.rows]
    figures = [html.figure(html.element("div", *blocks, class_="blocks", style=maps), caption=shown.label.line())]
    figures += [
        _register_figure(name, maps, shown.register_label, look)
        for name, maps in shown.registers.items()
        if len(maps) > 1
    ]
    return html.join([html.element("h3", shown.name), *figures])


def _block(row: MapRow, look: MapStyle, *, named: bool) -> html.Html:
    """One quantity: its name, the maps of all models side by side, and the scale they share."""
    low, high = row.limits()
    cells = []
    for model, values in row.maps.items():
        picture, *numbers = _map(row, values, look)
        name_below = html.element("div", model, class_="model") if named else ""
        cells.append(html.element("div", picture, name_below, *numbers))
    log = " (log)" if row.scale == "log" else ""
    return html.element(
        "div",
        html.element("div", row.name + log, class_="name"),
        html.element("div", *cells, class_="pair"),
        scale_legend(low, high, look.colormap),
        class_="block",
    )


def _map(row: MapRow, values: Float[np.ndarray, "rows cols"] | None, look: MapStyle) -> list[html.Html]:
    """The picture and its numbers."""
    if values is None:
        return [html.element("div", "none", class_="value")]
    low, high = row.placed_limits()
    data = map_png(row.placed(values), low=low, high=high, colormap=look.colormap, resampling=look.resampling)
    nearest = "nearest" if look.resampling == "nearest" else None
    picture = html.image(data, description=f"{row.name}: {', '.join(summary(values))}", class_=nearest)
    lines = (html.element("div", line) for line in summary(values))
    return [picture, html.element("div", *lines, class_="value")]


def _register_figure(
    model: str, maps: Float[np.ndarray, "registers rows cols"], label: FigureLabel, look: MapStyle
) -> html.Html:
    low, high = panel_scale(list(maps))
    cells = []
    for place, values in enumerate(maps):
        data = map_png(values, low=low, high=high, colormap=look.colormap, resampling=look.resampling)
        nearest = "nearest" if look.resampling == "nearest" else None
        picture = html.image(data, description=f"map of register {place}", class_=nearest)
        cells.append(html.element("div", picture, html.element("div", str(place), class_="value")))
    caption = html.join(
        [
            html.element("div", f"{model}: similarity of each register to the image tokens"),
            html.element("div", label.line()),
        ]
    )
    return html.figure(
        html.element("div", *cells, class_="maps"), scale_legend(low, high, look.colormap), caption=caption
    )


@styled
def draw_gallery(shown: GalleryImage, look: MapStyle) -> "Figure":
    """The image and its rows as one figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    models = list(shown.rows[0].maps)
    rows, columns = len(models), len(shown.rows) + 1
    # Square images are lower than their columns, so their titles need extra space above.
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 0.96))
    figure = Figure(figsize=(1.9 * columns, 2.05 * rows + 0.85), layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for line, name in enumerate(models):
        _imshow(grid[line, 0], np.moveaxis(shown.image, 0, -1), None)
        grid[line, 0].set_ylabel(label_text(name), fontsize=7.5)
    grid[0, 0].set_title(label_text(shown.name), fontsize=8)
    for column, row in enumerate(shown.rows, start=1):
        low, high = row.placed_limits()
        pictures = []
        for line, name in enumerate(models):
            values = row.maps[name]
            if values is None:
                grid[line, column].set_axis_off()
                continue
            placed = row.placed(values)
            if look.resampling == "bicubic":
                placed = resized(placed, (placed.shape[0] * 16, placed.shape[1] * 16))
            pictures.append(_imshow(grid[line, column], placed, (low, high, look.colormap)))
        log = ", log10" if row.scale == "log" else ""
        grid[0, column].set_title(f"{row.name}{log}", fontsize=8)
        if pictures:
            bar = figure.colorbar(
                pictures[-1], ax=list(grid[:, column]), orientation="horizontal", shrink=0.9, aspect=30
            )
            bar.ax.tick_params(labelsize=6.5)
    sign(figure, shown.label.line())
    return figure


@styled
def draw_registers(shown: GalleryImage, model: str, look: MapStyle) -> "Figure":
    """The register maps of one model as one figure."""
    maps = shown.registers[model]
    low, high = panel_scale(list(maps))
    figure, axes = new_axes(len(maps) + 1, columns=min(7, len(maps) + 1), size=(1.35, 1.5))
    _imshow(axes[0], np.moveaxis(shown.image, 0, -1), None)
    axes[0].set_title("input", fontsize=7.5)
    for place, values in enumerate(maps):
        if look.resampling == "bicubic":
            values = resized(values, (values.shape[0] * 16, values.shape[1] * 16))
        picture = _imshow(axes[place + 1], values, (low, high, look.colormap))
        axes[place + 1].set_title(f"register {place}", fontsize=7.5)
        if place == len(maps) - 1:
            bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=0.5, aspect=40)
            bar.ax.tick_params(labelsize=6.5)
    sign(figure, f"{model} · {shown.register_label.line()}")
    return figure


def _imshow(
    axes: "Axes", values: Shaped[np.ndarray, "rows cols *channels"], scale: tuple[float, float, str] | None
) -> "AxesImage":
    """An image without axes, or a map on a (low, high, colormap) scale."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if scale is None:
        shown = values if values.shape[-1] == 3 else np.repeat(values[..., :1], 3, axis=-1)
        return axes.imshow(shown, interpolation="nearest" if max(values.shape) <= 96 else "antialiased")
    low, high, colormap = scale
    return axes.imshow(values, vmin=low, vmax=high if high > low else low + 1, cmap=colormap, interpolation="nearest")
