"""Curves of a run: the numbers of metrics.jsonl by family (loss, accuracy, ...), drawn over steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mambar.analysis.draw.plots import DASHES, SERIES, label_text, new_axes, set_title, styled

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
# A row of metrics.jsonl says what it is of; the words a reader knows.
_KINDS: Final[dict[object, str]] = {"training": "training", "evaluation": "validation"}
# More points than this are drawn faintly, with their running mean over a fiftieth of them.
_MANY_POINTS: Final = 150


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
        pairs = {(row.get("kind"), name): None for row in rows for name in row if name not in _X_AXES}
        for kind, metric in pairs:
            name = family(metric)
            of_kind = [row for row in rows if row.get("kind") == kind]
            points = list(_points(of_kind, axis, metric)) if name is not None else []
            if name is not None and points:
                x, y = zip(*points, strict=True)
                shown = (
                    f"{_KINDS.get(kind, kind)} {metric.removeprefix('val_')}"
                    if name in ("Loss", "Accuracy") and kind
                    else metric
                )
                curves.append(Curve(run=run, metric=shown, family=name, axis=axis, x=x, y=y))
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
        colour = SERIES[hue % len(SERIES)]
        smooth = name != "Learning rate" and len(curve.x) > _MANY_POINTS
        if smooth:
            axes.plot(curve.x, curve.y, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(
            curve.x,
            running_mean(curve.y, len(curve.y) // 50) if smooth else curve.y,
            color=colour,
            linestyle=DASHES[dash % len(DASHES)],
            marker="o" if len(curve.x) <= 20 else "",
            markersize=3,
            label=label_text(curve.metric) if len(runs) == 1 else None,
        )
    if len(runs) > 1:
        _explain(axes, runs, metrics)
    axes.set_xlabel(curves[0].axis)
    set_title(axes, name, columns=2 if len(runs) == 1 else 1)
    if name == "Accuracy" and max(max(curve.y) for curve in curves) <= 1.0:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    if name == "Loss" and _spread(curves) > 30:
        axes.set_yscale("log")


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """For each value the mean of itself and up to `width` values on either side."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, at - width), min(len(values), at + width + 1)) for at in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in ends]


def _explain(axes: "Axes", runs: Sequence[str], metrics: Sequence[str]) -> None:
    """Legend entries without data: what each colour and each kind of dash means, not every pair of them."""
    for place, run in enumerate(runs):
        axes.plot([], [], color=SERIES[place % len(SERIES)], label=label_text(run))
    for place, metric in enumerate(metrics if len(metrics) > 1 else []):
        axes.plot([], [], color="#4d4d4d", linestyle=DASHES[place % len(DASHES)], label=label_text(metric))


def _spread(curves: Sequence[Curve]) -> float:
    values = [value for curve in curves for value in curve.y]
    return max(values) / min(values) if min(values) > 0 else 1.0
