"""Curves of a run: the metrics of metrics.jsonl by family (loss, accuracy, ...) over steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from mambar.analysis.draw import html
from mambar.analysis.draw.plots import DASHES, SERIES, label_text, new_axes, set_title, styled, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, object]

# Family of curves: the words in a metric's name, tried in this order; one of two letters is the name or its last part.
_FAMILIES: Final = {
    "Loss": ("loss",),
    "Accuracy": ("top1", "top5", "acc", "miou", "iou"),
    # Of the twelve numbers of a detector two for boxes and two for masks.
    "Average precision": ("ap", "ap50"),
    "Learning rate": ("lr", "learning_rate"),
    "Gradient norm": ("grad", "gradient"),
    "Token norm": ("token_norm", "max_norm"),
    "Images per second": ("images_per_second", "throughput"),
}
# Families whose curves are named by the images that they are of.
_EVALUATED: Final = ("Loss", "Accuracy", "Average precision")
_X_AXES: Final = ("step", "epoch")
# The `kind` of a row of metrics.jsonl as shown in the legend.
_KINDS: Final[dict[object, str]] = {"training": "training", "evaluation": "validation"}
# Curves with more points are drawn faintly, with a running mean over a fiftieth of the points on either side.
_MANY_POINTS: Final = 150


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one run over its steps (or epochs if the rows have no step)."""

    run: str
    metric: str
    family: str
    axis: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def family(metric: str) -> str | None:
    """The chart of a metric; None for a metric that is not drawn (time, counters)."""
    words = metric.lower()
    for name, keys in _FAMILIES.items():
        if any(key == words.rpartition("_")[2] or (key in words and len(key) > 2) for key in keys):
            return name
    return None


def collect_curves(runs: Mapping[str, Sequence[Row]]) -> list[Curve]:
    """The curves in the rows of metrics.jsonl of each run; NaN and infinity are omitted."""
    curves = []
    for run, rows in runs.items():
        axis = next((name for name in _X_AXES if any(name in row for row in rows)), "row")
        pairs = {(row.get("kind"), name): None for row in rows for name in row if name not in _X_AXES}
        for kind, metric in pairs:
            name = family(metric)
            points = list(_points([row for row in rows if row.get("kind") == kind], axis, metric))
            if name is not None and points:
                x, y = zip(*points, strict=True)
                if name in _EVALUATED and kind:
                    metric = f"{_KINDS.get(kind, kind)} {metric.removeprefix('val_')}"
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


def curve_section(curves: Sequence[Curve]) -> html.Html:
    """A report's section with one chart per family."""
    if not curves:
        return html.section("Curves", html.element("p", "No numbers were logged yet."))
    charts = (
        html.figure(html.svg_image(svg(draw_family(curves, name)), description=f"{name} over time"), caption="")
        for name in families(curves)
    )
    return html.section("Curves", html.element("div", *charts, class_="charts"))


@styled
def draw_family(curves: Sequence[Curve], name: str) -> "Figure":
    """One chart of one family."""
    figure, axes = new_axes(1, columns=1, size=(4.4, 3.0))
    _draw(axes[0], [curve for curve in curves if curve.family == name], name)
    return figure


@styled
def draw_curves(curves: Sequence[Curve], *, title: str) -> "Figure":
    """All families in one figure, which is saved as curves.png."""
    names = families(curves)
    figure, axes = new_axes(max(1, len(names)), columns=2, size=(4.4, 3.0))
    for axis, name in zip(axes, names, strict=False):
        _draw(axis, [curve for curve in curves if curve.family == name], name)
    if not names:
        axes[0].text(0.5, 0.5, "no metrics yet", ha="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
    figure.suptitle(label_text(title), fontsize=11)
    return figure


def _draw(axes: "Axes", curves: Sequence[Curve], name: str) -> None:
    runs = list(dict.fromkeys(curve.run for curve in curves))
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    for curve in curves:
        # One run: one color per metric. Several runs: one color per run, one dash pattern per metric.
        hue = metrics.index(curve.metric) if len(runs) == 1 else runs.index(curve.run)
        dash = metrics.index(curve.metric) if len(runs) > 1 else hue
        color = SERIES[hue % len(SERIES)]
        smooth = name != "Learning rate" and len(curve.x) > _MANY_POINTS
        if smooth:
            axes.plot(curve.x, curve.y, color=color, linewidth=0.6, alpha=0.3)
        axes.plot(
            curve.x,
            running_mean(curve.y, len(curve.y) // 50) if smooth else curve.y,
            color=color,
            linestyle=DASHES[dash % len(DASHES)],
            marker="o" if len(curve.x) <= 20 else "",
            markersize=3,
            label=label_text(curve.metric) if len(runs) == 1 else None,
        )
    if len(runs) > 1:
        _explain(axes, runs, metrics)
    axes.set_xlabel(curves[0].axis)
    set_title(axes, name, columns=2 if len(runs) == 1 else 1)
    if name in ("Accuracy", "Average precision") and max(max(curve.y) for curve in curves) <= 1.0:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    if name == "Loss" and _spread(curves) > 30:
        axes.set_yscale("log")


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """For each value, the mean of it and up to `width` values on either side."""
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, at - width), min(len(values), at + width + 1)) for at in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in ends]


def _explain(axes: "Axes", runs: Sequence[str], metrics: Sequence[str]) -> None:
    """Adds legend entries without data: one per color and one per dash pattern, not one per pair."""
    for place, run in enumerate(runs):
        axes.plot([], [], color=SERIES[place % len(SERIES)], label=label_text(run))
    for place, metric in enumerate(metrics if len(metrics) > 1 else []):
        axes.plot([], [], color="#4d4d4d", linestyle=DASHES[place % len(DASHES)], label=label_text(metric))


def _spread(curves: Sequence[Curve]) -> float:
    values = [value for curve in curves for value in curve.y]
    return max(values) / min(values) if min(values) > 0 else 1.0
