"""Draws results: every run as a point and the mean with its interval, one chart per column."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

from mambar.analysis.draw.plots import DASHES, SERIES, ChartGrid, draw_chart_grid, label_text, layer_axis, set_title
from mambar.analysis.figure_label import FigureLabel, listed
from mambar.paper.claim import Result
from mambar.paper.statistics import half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Field of the layer statistics in metrics.jsonl → title of its chart.
_BY_LAYER: Final = {
    "norm_mean": "Mean norm by layer, final step",
    "norm_max": "Largest norm by layer, final step",
    "outlier_share": "Outliers by layer, final step, %",
}
Rows = Sequence[Mapping[str, Any]]
Points = Callable[[Rows], tuple[Sequence[float], Sequence[float]]]


def draw_results(results: Sequence[Result]) -> "Figure | None":
    """One chart per column, one line per row, for results of one budget; None without results."""
    if not results:
        return None
    columns = list(dict.fromkeys(result.column for result in results))
    rows = list(dict.fromkeys(result.row for result in results))
    of_all = {result.budget for result in results}
    panels = [partial(_column, found=[r for r in results if r.column == column], of_all=of_all) for column in columns]
    where = results[0].provenance
    seeds = sorted({seed for result in results for seed in result.provenance.seeds})
    budgets = listed(result.budget for result in results)
    text = f"{where.data}, budget {budgets}, commit {where.commit}, seeds {', '.join(map(str, seeds)) or 'none'}"
    label = FigureLabel(data=text, metric="points are runs, bars 95 % intervals of the mean (Student's t)")
    size = (5.6, max(1.8, 0.42 * len(rows) + 1.0))
    return draw_chart_grid(ChartGrid(panels=panels, label=label, columns=min(2, len(columns)), size=size))


def draw_layers(runs: Mapping[str, Sequence[Rows]], *, data: str) -> "Figure | None":
    """Layer statistics over training. `runs`: network → the metrics.jsonl rows of each of its runs.

    Norms are of image tokens in the residual stream of a training batch; an outlier is above median + 10 MAD of its
    layer. None if no run logged layer statistics.
    """
    logged = {
        network: [[row for row in rows if row["kind"] == "health"] for rows in of_runs]
        for network, of_runs in runs.items()
    }
    logged = {network: [rows for rows in of_runs if rows] for network, of_runs in logged.items()}
    if not any(logged.values()):
        return None
    panels = [
        partial(_lines, points=partial(_by_layer, field=name), title=title, logged=logged)
        for name, title in _BY_LAYER.items()
    ]
    panels.append(partial(_over_training, logged=logged))
    label = FigureLabel(tensor="residual", metric="one line per seed; outliers above median + 10 MAD", data=data)
    return draw_chart_grid(ChartGrid(panels=panels, label=label, columns=2, size=(4.4, 2.9)))


def _column(axes: "Axes", *, found: Sequence[Result], of_all: Collection[str]) -> None:
    """One column; its title has the budget if the results of all columns, `of_all`, have several."""
    rows = list(dict.fromkeys(result.row for result in found))
    for result in found:
        place = len(rows) - 1 - rows.index(result.row)
        width = half_width(result.values)
        axes.plot(result.values, [place] * len(result.values), "o", color=SERIES[0], markersize=4, alpha=0.6)
        if width is not None:
            axes.errorbar(result.mean, place, xerr=width, fmt="|", color=SERIES[5], capsize=3, markersize=10)
    axes.set_yticks(range(len(rows)), [fill(label_text(row), 24) for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    budgets = "" if len(of_all) == 1 else f" ({listed(result.budget for result in found)})"
    axes.set_title(label_text(f"{found[0].column}{budgets}"))
    axes.grid(axis="y", visible=len(rows) == 1)


def _over_training(axes: "Axes", *, logged: Mapping[str, Sequence[Rows]]) -> None:
    _lines(axes, logged=logged, points=_last_layer, title="Outliers of the last layer over training, %", marker="")
    axes.set_xlabel("step")


def _lines(
    axes: "Axes", *, logged: Mapping[str, Sequence[Rows]], points: Points, title: str, marker: str = "o"
) -> None:
    """One line over the layers for each run, colored by network."""
    for place, (network, of_runs) in enumerate(logged.items()):
        for number, rows in enumerate(of_runs):
            axes.plot(
                *points(rows),
                color=SERIES[place],
                linestyle=DASHES[place],
                marker=marker,
                markersize=3,
                label=None if number else label_text(network),
            )
    layer_axis(axes)
    axes.set_ylim(bottom=0)
    set_title(axes, title)


def _by_layer(rows: Rows, *, field: str) -> tuple[Sequence[float], Sequence[float]]:
    factor = 100 if field == "outlier_share" else 1
    return range(len(rows[-1][field])), [factor * value for value in rows[-1][field]]


def _last_layer(rows: Rows) -> tuple[Sequence[float], Sequence[float]]:
    return [row["step"] for row in rows], [100 * row["outlier_share"][-1] for row in rows]
