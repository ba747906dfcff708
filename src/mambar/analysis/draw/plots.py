"""Figures with the style of mambar, as PNG and SVG files.

Figures are created without pyplot, so that no global state changes.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec

from mambar.analysis.figure_label import FigureLabel, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colorblind-safe colors (Okabe and Ito); dashes distinguish the lines in grayscale.
SERIES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#4d4d4d")
DASHES: Final = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
# Font size of legends in points, and the width of a legend's line and padding in letters.
_LEGEND, _HANDLE = 8.5, 6
# Pixels an inch of PNG files.
_DPI: Final = 150
# Bounds the memory of a figure, whatever the number and shape of its parts.
_MAX_INCHES: Final = 60.0
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5a6675",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": _LEGEND,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "mambar",
}

P = ParamSpec("P")


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Class names in a script that the font lacks are shown as boxes; no warning is needed.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def styled(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """`draw` with the style of mambar's figures, independent of the caller's matplotlib settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with _style():
            return draw(*args, **kwargs)

    return drawn


def label_text(value: object) -> str:
    """`value` as text that matplotlib shows as it is: a dollar sign starts no formula."""
    return printable(value).replace("$", r"\$")


def new_figure(size: tuple[float, float]) -> "Figure":
    """An empty figure of `size` (width, height) inches, at most `_MAX_INCHES` a side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The width of text depends on the resolution, so the layout is computed at that of the files.
    size = min(size[0], _MAX_INCHES), min(size[1], _MAX_INCHES)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(count: int, *, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` axes of `size` (width, height) inches each."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = new_figure((size[0] * columns, size[1] * rows))
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def set_title(axes: "Axes", title: str, *, columns: int = 1) -> None:
    """Sets the title; several lines get a legend between title and axes, for which `draw_chart_grid` leaves space.

    The legend has as many of the `columns` as fit the width of the chart; names that are too long are shortened.
    """
    names = axes.get_legend_handles_labels()[1]
    most = _letters_across(axes)
    if len(names) < 2:
        # The letters of a title are larger than those of a legend, and bold.
        axes.set_title(_shortened(label_text(title), int(0.75 * most)))
        return
    while columns > 1 and columns * (_HANDLE + max(map(len, names))) > most:
        columns -= 1
    legend = axes.legend(
        title=label_text(title),
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        alignment="left",
        borderaxespad=0.1,
        borderpad=0.2,
        labelspacing=0.25,
    )
    legend.get_title().set(fontweight="bold", fontsize=10)
    for text in legend.get_texts():
        text.set_text(_shortened(text.get_text(), most // columns - _HANDLE))


def _letters_across(axes: "Axes") -> int:
    """The number of letters of a legend that fit the width of the chart."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None and place is not None
    inches = figure.get_size_inches()[0] / place.get_gridspec().ncols
    # A letter is 0.6 of its height wide; 0.8 inches are for ticks and label of the vertical axis.
    return int((inches - 0.8) * 72 / (0.6 * _LEGEND))


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def auto_log_scale(axes: "Axes", values: Iterable[float]) -> None:
    """A logarithmic vertical axis where the values span more than a factor of 20."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 20 * min(positive):
        log_scale(axes, "y")


def log_scale(axes: "Axes", name: Literal["x", "y"]) -> None:
    """A logarithmic axis of what is drawn up to now; see `log_ticks`."""
    axes.set(**{f"{name}scale": "log"})
    log_ticks(axes.xaxis if name == "x" else axes.yaxis)


def log_ticks(axis: "Axis") -> None:
    """Few labels on a logarithmic axis: powers of ten, also 2 and 5 in a range below 100, any in one below 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=subs, numticks=6))
    axis.set_minor_formatter(NullFormatter())
    if low >= 1e-3 and high < 1e6:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def layer_axis(axes: "Axes") -> None:
    """A horizontal axis of layers, labeled at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer, from 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChartGrid:
    """Related charts of `size` inches without their legends: one figure for a file, several for a narrow page.

    With `shared_legend` the figure has one legend, that of the first chart, above all charts.
    """

    panels: "Sequence[Callable[[Axes], None]]"
    label: FigureLabel
    columns: int = 2
    size: tuple[float, float] = (4.4, 2.7)
    shared_legend: bool = False


@styled
def draw_chart_grid(sheet: ChartGrid) -> "Figure":
    """All charts in one figure with the label below."""
    figure = _drawn(sheet, sheet.panels)
    sign(figure, sheet.label.line())
    return figure


@styled
def draw_chart(sheet: ChartGrid, number: int) -> "Figure":
    """One of the charts, without the label."""
    return _drawn(sheet, [sheet.panels[number]])


def _drawn(sheet: ChartGrid, panels: "Sequence[Callable[[Axes], None]]") -> "Figure":
    figure, axes = new_axes(len(panels), columns=sheet.columns, size=sheet.size)
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis)
    if sheet.shared_legend:
        _share_legend(figure, axes)
    legends = [legend.get_window_extent().height for legend in (axis.get_legend() for axis in axes) if legend]
    figure.set_figheight(figure.get_figheight() * (1 + max(legends, default=0) / figure.dpi / sheet.size[1]))
    return figure


def _share_legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Replaces the legends of the charts by their titles, and puts the first one above all charts."""
    handles, names = axes[0].get_legend_handles_labels()
    for axis in axes:
        legend = axis.get_legend()
        if legend is not None:
            axis.set_title(legend.get_title().get_text())
            legend.remove()
    figure.legend(handles, names, loc="outside upper left", ncols=len(names) if len(names) < 5 else 3)


def sign(figure: "Figure", line: str) -> None:
    """Writes the label (`FigureLabel.line`) below the figure, wrapped to its width."""
    text = wrapped_label(line, figure.get_size_inches()[0])
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#5a6675")


def wrapped_label(line: str, width: float) -> str:
    """The label in lines that fit a figure of `width` inches."""
    from textwrap import fill

    # A separator stays at the end of its line.
    return fill(label_text(line).replace(" ·", "\N{NO-BREAK SPACE}·"), max(40, int(width * 20)))


def png(figure: "Figure", *, dpi: int = _DPI) -> bytes:
    """The figure as a reproducible PNG file."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def svg(figure: "Figure") -> bytes:
    """The figure as a reproducible SVG file, with text as paths."""
    return _saved(figure, format="svg", metadata={"Date": None})


def _saved(figure: "Figure", **options: Any) -> bytes:
    stream = io.BytesIO()
    with _style():
        if figure.get_layout_engine() is not None:
            # The layout is computed once, which takes longer than drawing.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(stream, **options)
    return stream.getvalue()
