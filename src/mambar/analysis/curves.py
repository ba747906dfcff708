"""Curves of a run: the numbers of metrics.jsonl by family (loss, accuracy, ...), drawn over steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mambar.analysis.plots import DASHES, SERIES, headline, label_text, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, object]

# Family of curves: the words that a metric's name holds, tried in this order.
_FAMILIES: Final = {
    "Loss": ("loss",),
    "Accuracy": ("top1", "top5", "acc", "miou", "iou"),
    "Learning rate": ("lr", "learning_rate"),
    "Gradient norm": ("grad", "gradient"),
    "Token norm": ("token_norm", "max_norm"),
    "Images per second": ("images_per_second", "throughput"),
}
_X_AXES: Final = ("step", "epoch")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one run over its steps (or epochs, where the rows have no step)."""

    run: str
    metric: str
    family: str
    axis: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def family(metric: str) -> str | None:
    """The chart a metric belongs to, None where it is drawn nowhere (time, counters)."""
    words = metric.lower()
    for name, keys in _FAMILIES.items():
        if any(key == words or (key in words and len(key) > 2) for key in keys):
            return name
    return None


def collect_curves(runs: Mapping[str, Sequence[Row]]) -> list[Curve]:
    """The curves in the rows of metrics.jsonl of each run; numbers that are not finite are left out."""
    curves = []
    for run, rows in runs.items():
        axis = next((name for name in _X_AXES if any(name in row for row in rows)), "row")
        metrics = {name: name for row in rows for name in row if name not in _X_AXES}
        for metric in metrics:
            name = family(metric)
            points = list(_points(rows, axis, metric)) if name is not None else []
            if name is not None and points:
                x, y = zip(*points, strict=True)
                curves.append(Curve(run=run, metric=metric, family=name, axis=axis, x=x, y=y))
    return curves


def _points(rows: Sequence[Row], axis: str, metric: str) -> Iterable[tuple[float, float]]:
    for index, row in enumerate(rows):
        x, y = row.get(axis, index), row.get(metric)
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y):
            yield float(x), float(y)


def families(curves: Sequence[Curve]) -> list[str]:
    """The families that have curves, in the order of the charts."""
    present = {curve.family for curve in curves}
    return [name for name in _FAMILIES if name in present]


@styled
def draw_family(curves: Sequence[Curve], name: str) -> "Figure":
    """One chart of one family."""
    figure, axes = new_axes(1, columns=1, size=(4.4, 3.0))
    _draw(axes[0], [curve for curve in curves if curve.family == name], name)
    return figure


@styled
def draw_curves(curves: Sequence[Curve], *, title: str) -> "Figure":
    """All families on one sheet: the run's curves.png."""
    names = families(curves)
    figure, axes = new_axes(max(1, len(names)), columns=2, size=(4.4, 3.0))
    for axis, name in zip(axes, names, strict=False):
        _draw(axis, [curve for curve in curves if curve.family == name], name)
    if not names:
        axes[0].text(0.5, 0.5, "no numbers yet", ha="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
    figure.suptitle(label_text(title), fontsize=11)
    return figure


def _draw(axes: "Axes", curves: Sequence[Curve], name: str) -> None:
    runs = list(dict.fromkeys(curve.run for curve in curves))
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    for curve in curves:
        # One run: a colour for each metric. Several runs: a colour for each run, dashes for the metrics.
        hue = metrics.index(curve.metric) if len(runs) == 1 else runs.index(curve.run)
        dash = metrics.index(curve.metric) if len(runs) > 1 else hue
        axes.plot(
            curve.x,
            curve.y,
            color=SERIES[hue % len(SERIES)],
            linestyle=DASHES[dash % len(DASHES)],
            marker="o" if len(curve.x) <= 20 else "",
            markersize=3,
            label=label_text(_curve_name(curve, runs, metrics)),
        )
    axes.set_xlabel(curves[0].axis)
    headline(axes, name, columns=2)
    if name == "Accuracy" and max(max(curve.y) for curve in curves) <= 1.0:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    if name == "Loss" and _spread(curves) > 30:
        axes.set_yscale("log")


def _curve_name(curve: Curve, runs: Sequence[str], metrics: Sequence[str]) -> str:
    if len(runs) == 1:
        return curve.metric
    return curve.run if len(metrics) == 1 else f"{curve.run}: {curve.metric}"


def _spread(curves: Sequence[Curve]) -> float:
    values = [value for curve in curves for value in curve.y]
    return max(values) / min(values) if min(values) > 0 else 1.0
