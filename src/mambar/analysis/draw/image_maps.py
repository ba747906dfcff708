"""Images beside their maps: for each quantity one map per model, on a common scale with a color bar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import MapStyle, color_scale, map_html, photograph_html, resized, to_uint8
from mambar.analysis.draw.norm_panels import NormPanel, panel_scale, scale_legend, summary
from mambar.analysis.draw.plots import label_text, log_ticks, new_figure, sign, styled, wrapped_label
from mambar.analysis.figure_label import FigureLabel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Map = Float[np.ndarray, "rows cols"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MapRow:
    """Maps of one quantity, all on one linear or logarithmic scale.

    Attributes:
        name: What is shown.
        quantity: The quantity and its sense, for the color bar.
        maps: A map per model or register; None for a model without it.
        scale: Scale of the colors.
        small_is_bright: True for a distance: bright means similar in every figure.
    """

    name: str
    quantity: str
    maps: Mapping[str, Map | None]
    scale: Literal["linear", "log"] = "linear"
    small_is_bright: bool = False

    @property
    def legend(self) -> str:
        """The text at the color bar."""
        return self.quantity + (", log scale" if self.scale == "log" else "")

    def given(self) -> list[Map]:
        """The maps that are not None."""
        return [values for values in self.maps.values() if values is not None]

    def colors(self) -> "Normalize":
        """The scale from the smallest to the largest value of all maps."""
        given = self.given()
        if self.scale == "log":
            given = [np.where(values > 0, values, np.nan) for values in given]
        return color_scale(*panel_scale(given), log=self.scale == "log")

    def style(self, style: MapStyle) -> MapStyle:
        """`style`, with its colormap reversed where small values are bright."""
        return replace(style, colormap=f"{style.colormap}_r") if self.small_is_bright else style


@dataclass(frozen=True, kw_only=True, eq=False)
class MapGroup:
    """Maps of one quantity for several images, all on one scale.

    Attributes:
        name: The title of the group.
        quantity: The quantity and its sense, for the color bar.
        columns: Name of a model or register → a map for each image.
        scale: Scale of the colors.
        small_is_bright: True for a distance.
    """

    name: str
    quantity: str
    columns: Mapping[str, Sequence[Map]]
    scale: Literal["linear", "log"] = "linear"
    small_is_bright: bool = False

    def row(self) -> MapRow:
        """All maps of the group as one row."""
        maps = {(name, place): each for name, maps in self.columns.items() for place, each in enumerate(maps)}
        return MapRow(
            name=self.name,
            quantity=self.quantity,
            maps={f"{name} {place}": values for (name, place), values in maps.items()},
            scale=self.scale,
            small_is_bright=self.small_is_bright,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RegisterMaps:
    """The maps of the registers of one model, by name of the register."""

    model: str
    row: MapRow
    label: FigureLabel


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryImage:
    """One image with its rows, and the register maps of each model that has several registers."""

    name: str
    image: UInt8[np.ndarray, "channels height width"]
    rows: Sequence[MapRow]
    registers: Sequence[RegisterMaps]
    label: FigureLabel


def norm_scale(option: Literal["auto", "linear", "log"], maxima: Sequence[float]) -> Literal["linear", "log"]:
    """The scale of norm maps; "auto" is logarithmic where the maxima of the models differ more than tenfold."""
    if option == "auto":
        return "log" if max(maxima) > 10 * min(maxima) else "linear"
    return option


def gallery_html(shown: GalleryImage, style: MapStyle) -> html.Html:
    """The image with its rows and register maps."""
    models = list(shown.rows[0].maps)
    columns = f"--maps:{len(models)}"
    inside = html.element("div", html.element("div", photograph_html(shown.image, shown.name)), class_="pair")
    blocks = [html.element("div", html.element("div", "Input", class_="name"), inside, class_="block")]
    blocks += [_block(row, style, named=len(models) > 1) for row in shown.rows]
    figures = [html.figure(html.element("div", *blocks, class_="blocks", style=columns), caption=shown.label.line())]
    figures += [_register_figure(registers, style) for registers in shown.registers]
    return html.join([html.element("h3", shown.name), *figures])


def _block(row: MapRow, style: MapStyle, *, named: bool) -> html.Html:
    """One quantity: its name, the maps of all models side by side, and their common color scale."""
    cells = []
    for model, values in row.maps.items():
        name_below = html.element("div", model, class_="model") if named else ""
        if values is None:
            cells.append(html.element("div", html.element("div", "none", class_="value"), name_below))
            continue
        numbers = summary(values)
        picture = map_html(values, f"{row.name}: {', '.join(numbers)}", row.colors(), row.style(style))
        lines = html.element("div", *(html.element("div", line) for line in numbers), class_="value")
        cells.append(html.element("div", picture, name_below, lines))
    return html.element(
        "div",
        html.element("div", row.name, class_="name"),
        html.element("div", *cells, class_="pair"),
        scale_legend(*panel_scale(row.given()), row.legend, row.style(style).colormap),
        class_="block",
    )


def _register_figure(registers: RegisterMaps, style: MapStyle) -> html.Html:
    row, cells = registers.row, []
    for name, values in row.maps.items():
        assert values is not None
        picture = map_html(values, f"map of {name}", row.colors(), row.style(style))
        cells.append(html.element("div", picture, html.element("div", name.removeprefix("register "), class_="value")))
    columns = f"--columns:{_register_columns(len(cells))}"
    return html.figure(
        html.element("div", *cells, class_="maps", style=columns),
        scale_legend(*panel_scale(row.given()), row.legend, row.style(style).colormap),
        caption=html.join(html.element("div", line) for line in (row.name, registers.label.line())),
    )


def _register_columns(count: int) -> int:
    """Columns of the maps of `count` registers: at most 8, with rows of equal length where possible."""
    rows = -(-count // 8)
    return -(-count // rows)


@styled
def draw_gallery(shown: GalleryImage, style: MapStyle) -> "Figure":
    """The image and its rows as one figure: a line per model, a color bar below each column."""
    models, columns = list(shown.rows[0].maps), len(shown.rows) + 1
    # Images taller than 3 : 1 are drawn with margins at their sides.
    height = 1.9 * min(shown.image.shape[1] / shown.image.shape[2], 3)
    figure = new_figure((1.9 * columns, (height + 0.1) * len(models) + 1.0))
    ratios = [*(height for _ in models), 0.08]
    grid = figure.subplots(len(models) + 1, columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for name, first in zip(models, grid[:, 0], strict=False):
        _draw_image(first, shown.image)
        first.set_ylabel(_wrapped(name, 30), fontsize=7.5)
    grid[0, 0].set_title(_wrapped(shown.name, 25), fontsize=8)
    grid[-1, 0].set_axis_off()
    for row, column in zip(shown.rows, grid.T[1:], strict=True):
        for axis, values in zip(column, row.maps.values(), strict=False):
            _draw_map(axis, values, row, style)
        column[0].set_title(_wrapped(row.name, 25), fontsize=8)
        _color_bar(column[-1], row, style)
    sign(figure, shown.label.line())
    return figure


@styled
def draw_norm_panels(panels: Sequence[NormPanel]) -> "Figure":
    """The images side by side above the norm maps of each model; the maps of one image share a color bar."""
    models = list(panels[0].maps)
    figure = new_figure((1.9 * len(panels) + 0.3, 2.0 * (len(models) + 1) + 1.0))
    ratios = [*(1.9 for _ in ("input", *models)), 0.08]
    grid = figure.subplots(len(models) + 2, len(panels), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for panel, column in zip(panels, grid.T, strict=True):
        row = MapRow(name=panel.caption, quantity="L2 norm", maps=panel.maps)
        _draw_image(column[0], to_uint8(panel.image))
        column[0].set_title(_wrapped(panel.caption, 25), fontsize=8)
        for axis, values in zip(column[1:], row.maps.values(), strict=False):
            _draw_map(axis, values, row, MapStyle())
        _color_bar(column[-1], row, MapStyle())
    for axis, name in zip(grid[:, 0], ("input", *models), strict=False):
        axis.set_ylabel(_wrapped(name, 30), fontsize=7.5)
    sign(figure, panels[0].label.line())
    return figure


@styled
def draw_registers(
    image: UInt8[np.ndarray, "channels height width"], registers: RegisterMaps, style: MapStyle
) -> "Figure":
    """The image at the left, and the maps of the registers in rows of equal length."""
    maps = registers.row.maps
    columns = _register_columns(len(maps))
    rows = -(-len(maps) // columns)
    figure = new_figure((1.35 * (columns + 1), 1.55 * rows + 1.0))
    grid = figure.add_gridspec(rows + 1, columns + 1, height_ratios=[*(1.4 for _ in range(rows)), 0.08])
    first = figure.add_subplot(grid[0, 0])
    _draw_image(first, image)
    first.set_title("input", fontsize=7.5)
    for place, (name, values) in enumerate(maps.items()):
        axis = figure.add_subplot(grid[place // columns, 1 + place % columns])
        _draw_map(axis, values, registers.row, style)
        axis.set_title(name, fontsize=7.5)
    _color_bar(figure.add_subplot(grid[-1, 1:]), registers.row, style)
    sign(figure, registers.label.line())
    return figure


@styled
def draw_map_grid(
    images: Sequence[UInt8[np.ndarray, "channels height width"]],
    groups: Sequence[MapGroup],
    label: FigureLabel,
    style: MapStyle | None = None,
    *,
    width: float = 6.9,
) -> "Figure":
    """A row per image: the input, then the maps of each group side by side above the color bar of the group.

    `width` in inches is that of a page with two columns. Positions are computed here, so that all rows are aligned.
    """
    style = style or MapStyle()
    between, apart, above = 0.04, 0.14, 0.36
    # The lines of the label.
    foot = 0.06 + 0.12 * len(wrapped_label(label.line(), width).splitlines())
    count = 1 + sum(len(group.columns) for group in groups)
    gaps = between * (count - 1 - len(groups)) + apart * len(groups) + 0.1
    cell = (width - gaps) / count
    # 0.055 inches a letter at the color bars.
    legends = [_wrapped(group.row().legend, max(12, int(len(group.columns) * cell / 0.055))) for group in groups]
    below = 0.36 + 0.12 * max(text.count("\n") + 1 for text in legends)
    heights = [cell * min(image.shape[1] / image.shape[2], 3) for image in images]
    total = above + sum(heights) + between * (len(images) - 1) + below + foot
    figure = new_figure((width, total))
    figure.set_layout_engine("none")
    width, total = figure.get_size_inches()

    def axes_at(left: float, bottom: float, across: float, high: float) -> "Axes":
        return figure.add_axes((left / width, bottom / total, across / width, high / total))

    def heading(middle: float, high: float, text: str, **font: Any) -> None:
        figure.text(middle / width, (total - above + high) / total, label_text(text), ha="center", **font)

    tops = [total - above - sum(heights[:place]) - between * place for place in range(len(images))]
    places = list(zip(tops, heights, strict=True))
    left = 0.05
    for image, (top, height) in zip(images, places, strict=True):
        _draw_image(axes_at(left, top - height, cell, height), image)
    heading(left + cell / 2, 0.03, "input", fontsize=7.5)
    left += cell + apart
    for group, legend in zip(groups, legends, strict=True):
        row, first = group.row(), left
        for name, maps in group.columns.items():
            for values, (top, height) in zip(maps, places, strict=True):
                _draw_map(axes_at(left, top - height, cell, height), values, row, style)
            heading(left + cell / 2, 0.03, name, fontsize=7.5)
            left += cell + between
        across = left - between - first
        heading(first + across / 2, 0.17, group.name, fontsize=8, weight="bold")
        bar = axes_at(first + 0.04 * across, foot + below - 0.12, 0.92 * across, 0.06)
        _color_bar(bar, row, style, num_ticks=4 if across > 1 else 2)
        bar.set_xlabel(legend, size=7)
        left += apart - between
    sign(figure, label.line())
    return figure


def _wrapped(text: str, width: int) -> str:
    from textwrap import fill

    return fill(label_text(text), width)


def _draw_image(axes: "Axes", image: UInt8[np.ndarray, "channels height width"]) -> None:
    _hide_frame(axes)
    pixels = np.moveaxis(image if len(image) == 3 else np.repeat(image[:1], 3, axis=0), 0, -1)
    axes.imshow(pixels, interpolation="nearest" if max(image.shape) <= 96 else "antialiased")


def _draw_map(axes: "Axes", values: Map | None, row: MapRow, style: MapStyle) -> None:
    if values is None:
        # An empty box of the shape of a map keeps the title at the height of the other titles.
        rows, cols = row.given()[0].shape
        axes.set_box_aspect(rows / cols)
        axes.set_axis_off()
        return
    _hide_frame(axes)
    if style.resampling == "bicubic":
        factor = max(1, min(16, 2048 // max(values.shape)))
        values = resized(values, (values.shape[0] * factor, values.shape[1] * factor))
    axes.imshow(values, norm=row.colors(), cmap=row.style(style).colormap, interpolation="nearest")


def _hide_frame(axes: "Axes") -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _color_bar(axes: "Axes", row: MapRow, style: MapStyle, *, num_ticks: int = 4) -> None:
    """The color bar of a row in `axes`, labeled with its quantity."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    figure = axes.get_figure(root=True)
    assert figure is not None
    picture = ScalarMappable(norm=row.colors(), cmap=row.style(style).colormap)
    bar = figure.colorbar(picture, cax=axes, orientation="horizontal")
    bar.set_label(row.legend, size=7)
    bar.ax.tick_params(labelsize=6.5)
    if row.scale == "log":
        log_ticks(bar.ax.xaxis)
    else:
        bar.ax.xaxis.set_major_locator(MaxNLocator(num_ticks))
    axes.grid(visible=False)
