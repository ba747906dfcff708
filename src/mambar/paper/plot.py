"""Draws results: every run as a point and the mean with its interval, one chart per column."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from mambar.analysis.draw.plots import (
    DASHES,
    SERIES,
    ChartGrid,
    auto_log_scale,
    draw_chart_grid,
    label_text,
    layer_axis,
    log_ticks,
    set_title,
)
from mambar.analysis.figure_label import FigureLabel, listed
from mambar.paper.claim import Result
from mambar.paper.statistics import half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Statistic of `Outcomes.layers` → title of its chart.
_BY_LAYER: Final = {
    "norm_median": "Median norm",
    "norm_max": "Largest norm",
    "norm_ratio": "Largest norm / median",
    "outlier_share": "Outliers, % of tokens",
    "outlier_background": "Outliers outside objects, %",
    "mixer_median": "Mixer output, median norm",
    "mixer_ratio": "Mixer output / residual, all",
    "mixer_ratio_outliers": "Mixer output / residual, outliers",
}
# Statistic of a training log → name of its color bar, and its factor.
_OVER_TRAINING: Final = {"outlier_share": ("outliers, % of tokens", 100.0), "norm_max": ("largest norm", 1.0)}
Layers = Mapping[str, Sequence[float | None]]
Rows = Sequence[Mapping[str, Any]]
# Horizontal and vertical values.
Line = tuple[Sequence[float], Sequence[float]]


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


def draw_layers(
    layers: Mapping[str, Sequence[Layers]], training: Mapping[str, Sequence[Rows]], *, data: str
) -> "Figure | None":
    """Statistics by layer on held-out images, and the outliers of the last layer over training.

    `layers`: network → the statistics of each of its runs (`Outcomes.layers`). `training`: network → the metrics.jsonl
    rows of each run; layer statistics are of a training batch. Norms are of image tokens in the residual stream; an
    outlier is above median + 10 MAD of its layer. None without any.
    """
    layers = {network: [{**run, "norm_ratio": _ratios(run)} for run in of_runs] for network, of_runs in layers.items()}
    panels: list[Callable[[Axes], None]] = []
    for name, title in _BY_LAYER.items():
        lines = {network: _by_layer(of_runs, field=name) for network, of_runs in layers.items()}
        if any(lines.values()):
            panels.append(partial(_lines, lines=lines, title=title))
    course = {network: _last_layer(of_runs) for network, of_runs in training.items()}
    if any(course.values()):
        panels.append(partial(_over_training, lines=course))
    if not panels:
        return None
    label = FigureLabel(tensor="residual", metric="one line per seed; outliers above median + 10 MAD", data=data)
    return draw_chart_grid(ChartGrid(panels=panels, label=label, columns=2, size=(3.45, 2.1), shared_legend=True))


def draw_training(training: Mapping[str, Sequence[Rows]], *, data: str) -> "Figure | None":
    """Outliers and the largest norm by layer and training step, mean over the runs of each network.

    `training`: network → the metrics.jsonl rows of each run; steps that not every run has are left out. None without
    layer statistics.
    """
    grids: dict[str, dict[str, Float[np.ndarray, "steps layers"]]] = {}
    steps: dict[str, list[int]] = {}
    counts = set()
    for network, of_runs in training.items():
        logs = [{row["step"]: row for row in rows if row["kind"] == "health"} for rows in of_runs]
        logs = [log for log in logs if log]
        steps[network] = sorted(set[int].intersection(*map(set, logs))) if logs else []
        if steps[network]:
            counts.add(len(logs))
            for field, (name, factor) in _OVER_TRAINING.items():
                values = [[log[step][field] for step in steps[network]] for log in logs]
                grids.setdefault(network, {})[name] = factor * np.mean(values, axis=0)
    if not grids:
        return None
    scales = {}
    for name, _ in _OVER_TRAINING.values():
        every = np.concatenate([of_network[name].ravel() for of_network in grids.values()])
        scales[name] = (float(every.min()), float(every.max()))
    panels = [
        partial(_map, steps=steps[network], grid=grid, title=network, name=name, scale=scales[name])
        for network, of_network in grids.items()
        for name, grid in of_network.items()
    ]
    seeds = "one seed" if counts == {1} else f"mean of {listed(map(str, sorted(counts)))} seeds"
    metric = f"{seeds}; outliers above median + 10 MAD of a training batch"
    label = FigureLabel(tensor="residual", metric=metric, data=data)
    return draw_chart_grid(ChartGrid(panels=panels, label=label, columns=2, size=(3.45, 2.1)))


def _map(
    axes: "Axes",
    *,
    steps: Sequence[int],
    grid: Float[np.ndarray, "steps layers"],
    title: str,
    name: str,
    scale: tuple[float, float],
) -> None:
    """Layers upwards, logged steps to the right; the networks share the color scale of a statistic, norms in log."""
    options: dict[str, Any] = {"vmin": 0.0} if "%" in name else {"norm": "log", "vmin": scale[0]}
    drawn = axes.pcolormesh(range(len(steps)), range(grid.shape[1]), grid.T, vmax=scale[1] or 1.0, **options)
    shown = sorted({round(place * (len(steps) - 1) / 3) for place in range(4)})
    axes.set_xticks(shown, [f"{steps[place]:,}" for place in shown])
    axes.set(xlabel="step", ylabel="layer, from 0")
    axes.grid(visible=False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, ax=axes, label=name)
    if "norm" in options:
        log_ticks(bar.ax.yaxis)
    set_title(axes, title)


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


def _over_training(axes: "Axes", *, lines: Mapping[str, Sequence[Line]]) -> None:
    _lines(axes, lines=lines, title="Last layer in training: outliers, %", marker="")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("step")


def _lines(axes: "Axes", *, lines: Mapping[str, Sequence[Line]], title: str, marker: str = "o") -> None:
    """One line for each run, colored by network; up to 24 networks differ by color and dashes together."""
    for place, (network, of_runs) in enumerate(lines.items()):
        turn, color = divmod(place, len(SERIES))
        for number, (x, y) in enumerate(of_runs):
            axes.plot(
                x,
                y,
                color=SERIES[color],
                linestyle=DASHES[(place + turn) % len(DASHES)],
                linewidth=1,
                marker=marker,
                markersize=2.5,
                label=None if number else label_text(network),
            )
    layer_axis(axes)
    axes.margins(x=0.03)
    every = [value for of_runs in lines.values() for _, y in of_runs for value in y]
    if "%" not in title and min(every) > 0:
        auto_log_scale(axes, every)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    set_title(axes, title)


def _by_layer(of_runs: Sequence[Layers], *, field: str) -> list[Line]:
    """The layers and values of each run that has the statistic; undefined values are gaps."""
    factor = 100 if field.startswith("outlier") else 1
    found = [run[field] for run in of_runs if run.get(field)]
    return [(range(len(run)), [math.nan if value is None else factor * value for value in run]) for run in found]


def _ratios(run: Layers) -> list[float | None]:
    """Largest / median norm; empty for a run without norms, None for a layer without them."""
    pairs = zip(run.get("norm_max", ()), run.get("norm_median", ()), strict=False)
    return [most / median if most and median else None for most, median in pairs]


def _last_layer(of_runs: Sequence[Rows]) -> list[Line]:
    found: list[Line] = []
    for rows in of_runs:
        logged = [row for row in rows if row["kind"] == "health"]
        if logged:
            found.append(([row["step"] for row in logged], [100 * row["outlier_share"][-1] for row in logged]))
    return found
