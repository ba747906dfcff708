"""Figures of numbers that were computed elsewhere: curves, distributions, maps; drawing only.

Figures are made with matplotlib's objects, never through pyplot, so nothing global is opened or left open.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from mambar.analysis.labels import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for the colour-blind (Okabe and Ito); the dashes keep them apart in grey.
SERIES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#4d4d4d")
DASHES: Final = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5a6675",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "mambar",
}

P = ParamSpec("P")


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A class name in a script that the font lacks shows boxes; that is no news for the log.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def styled(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """`draw` in the house's style, whatever settings the caller's matplotlib has."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with _style():
            return draw(*args, **kwargs)

    return drawn


def label_text(value: object) -> str:
    """`value` as text that matplotlib shows as it is: a dollar sign starts no formula."""
    return printable(value).replace("$", r"\$")


def new_axes(count: int, *, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` axes of `size` (width, height) inches each, bound to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def png(figure: "Figure", *, dpi: int = 150) -> bytes:
    """The figure as a PNG file, the same bytes for the same numbers."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def svg(figure: "Figure") -> bytes:
    """The figure as an SVG file without a date, letters as outlines."""
    return _saved(figure, format="svg", metadata={"Date": None})


def _saved(figure: "Figure", **options: Any) -> bytes:
    stream = io.BytesIO()
    with _style():
        figure.savefig(stream, **options)
    return stream.getvalue()
