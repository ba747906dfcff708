"""Charts of one or more `AnalysisResult`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.draw.plots import (
    DASHES,
    SERIES,
    ChartGrid,
    auto_log_scale,
    label_text,
    layer_axis,
    log_scale,
    set_title,
)
from mambar.analysis.figure_label import FigureLabel, layers_text
from mambar.analysis.measure.collect import CollectedNorms
from mambar.analysis.measure.distributions import NormDistribution
from mambar.analysis.measure.outliers import TopShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, AnalysisResult]


def _color(model: int) -> str:
    return SERIES[model % len(SERIES)]


def _mark(model: int) -> dict[str, Any]:
    """Color and marker of a model; markers distinguish the lines in grayscale."""
    return {"color": _color(model), "marker": "os^D"[model % 4], "markersize": 3.5}


def _line(axes: "Axes", x: Sequence[int], y: Iterable[float], label: str, **style: Any) -> list[float]:
    """Draws a line and returns its values."""
    values = [float(value) for value in y]
    axes.plot(x, values, label=label_text(label), **style)
    return values


def distribution_charts(
    norms: Mapping[str, CollectedNorms],
    layers: Sequence[Mapping[str, int]],
    label: FigureLabel,
    *,
    registers: Mapping[str, str],
) -> ChartGrid:
    """The density of token norms (both axes logarithmic), one line per model, registers dotted.

    Each chart shows one entry of `layers`, which maps the name of a model to a layer. `registers` says what the
    registers of each model are (`registers_label`).
    """

    def draw(chosen: Mapping[str, int], axes: "Axes") -> None:
        same = len(set(chosen.values())) == 1
        for model, (name, found) in enumerate(norms.items()):
            if name in chosen:
                at = found.layers.index(chosen[name])
                shown = name if same else f"{name}, layer {chosen[name]}"
                _density(axes, found.patches[at], _color(model), "-", shown)
                _density(axes, found.registers[at], _color(model), ":", f"{name}, {registers[name]}")
        log_scale(axes, "x")
        log_scale(axes, "y")
        axes.set(xlabel="L2 norm", ylabel="density")
        set_title(axes, layers_text(chosen.values()).capitalize())

    same = all(len(set(chosen.values())) == 1 for chosen in layers)
    return ChartGrid(panels=[partial(draw, chosen) for chosen in layers], label=label, shared_legend=same)


def _density(axes: "Axes", distribution: NormDistribution, color: str, dash: str, name: str) -> None:
    if not distribution.count:
        return
    edges, density = distribution.density(bins_per_octave=8)
    shown = np.where(density > 0, density, np.nan)
    axes.stairs(shown, edges, color=color, linestyle=dash, linewidth=1.3, label=label_text(name), baseline=None)


def norm_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Over the layers: median, 99 % quantile and maximum of the norms; maximum and registers over the median."""

    def absolute(axes: "Axes") -> None:
        values: list[float] = []
        for model, (name, found) in enumerate(results.items()):
            lines = {
                "median": [layer.median for layer in found.norms.patches],
                "99 %": [layer.quantile(0.99) for layer in found.norms.patches],
                "maximum": [layer.maximum for layer in found.norms.patches],
            }
            for dash, (kind, numbers) in zip(DASHES, lines.items(), strict=False):
                style = {"color": _color(model), "linestyle": dash}
                values += _line(axes, found.norms.layers, numbers, f"{name}: {kind}", **style)
        _finish(axes, "Norm of image tokens", "L2 norm", values, columns=min(2, len(results)))

    def relative(axes: "Axes") -> None:
        values: list[float] = []
        for model, (name, found) in enumerate(results.items()):
            median = np.array([layer.median for layer in found.norms.patches])
            highest = np.array([layer.maximum for layer in found.norms.patches]) / median
            values += _line(axes, found.norms.layers, highest, f"{name}: maximum", **_mark(model))
            if found.norms.registers[0].count:
                ratios = np.array([layer.median for layer in found.norms.registers]) / median
                style = {"color": _color(model), "linestyle": DASHES[2]}
                values += _line(axes, found.norms.layers, ratios, f"{name}: {found.registers_label}, median", **style)
        _finish(axes, "Relative to the median of the image tokens", "norm / median norm", values)

    return ChartGrid(panels=[absolute, relative], label=label)


def _finish(axes: "Axes", title: str, y: str, values: Sequence[float], *, columns: int = 1) -> None:
    """Axes, labels and title of a chart over the layers."""
    auto_log_scale(axes, values)
    layer_axis(axes)
    axes.set_ylabel(y)
    set_title(axes, title, columns=columns)


def outlier_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """The share of tokens that each rule calls outliers, over the layers; not of a rule that fixes the share."""

    def draw(place: int, rule: str, axes: "Axes") -> None:
        for model, (name, found) in enumerate(results.items()):
            shares = [100 * layer.share for layer in found.outliers[place].layers]
            _line(axes, found.norms.layers, shares, name, **_mark(model))
        # A chart without outliers has an axis up to 1 %, not an empty range around 0.
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        _finish(axes, rule[:1].upper() + rule[1:], "% of image tokens", ())

    rules = [statistics.rule for statistics in next(iter(results.values())).outliers]
    panels = [partial(draw, place, rule) for place, rule in enumerate(rules) if rule != TopShare().name]
    return ChartGrid(panels=panels, label=label)


def layer_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Over the layers, one line a model: median and largest norm, their ratio, and the share of outliers."""

    def draw(title: str, y: str, values: Callable[[AnalysisResult], Iterable[float]], axes: "Axes") -> None:
        shown: list[float] = []
        for model, (name, found) in enumerate(results.items()):
            shown += _line(axes, found.norms.layers, values(found), name, **_mark(model))
        if min(shown) == 0:
            # A chart without outliers has an axis up to 1 %, not an empty range around 0.
            axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        _finish(axes, title, y, shown if min(shown) > 0 else ())

    rule = next(iter(results.values())).outliers[0].rule.removeprefix("norm ")
    panels = [
        partial(draw, "Median norm", "L2 norm", lambda found: [each.median for each in found.norms.patches]),
        partial(draw, "Largest norm", "L2 norm", lambda found: [each.maximum for each in found.norms.patches]),
        partial(
            draw, "Largest / median norm", "ratio", lambda found: [each.ratio for each in found.outliers[0].layers]
        ),
        partial(
            draw,
            f"Outliers: {rule}",
            "% of image tokens",
            lambda found: [100 * each.share for each in found.outliers[0].layers],
        ),
    ]
    return ChartGrid(panels=panels, label=label, shared_legend=True)


def probe_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Top-1 accuracy of the pooling probes with 95 % intervals, one chart per method."""
    methods = list(dict.fromkeys(result.method for found in results.values() for result in found.probes))
    pools = list(dict.fromkeys(result.name for found in results.values() for result in found.probes))

    def draw(method: str, axes: "Axes") -> None:
        for model, (name, found) in enumerate(results.items()):
            probes = [probe for probe in found.probes if probe.method == method]
            offset = 0.22 * (model - (len(results) - 1) / 2)
            y = [-pools.index(probe.name) - offset for probe in probes]
            middle = np.array([100 * probe.accuracy for probe in probes])
            ends = np.array([[100 * probe.low, 100 * probe.high] for probe in probes]).T
            style = {**_mark(model), "linestyle": "none", "capsize": 2}
            axes.errorbar(middle, y, xerr=np.abs(ends - middle), label=label_text(name), **style)
        axes.set_yticks([-place for place in range(len(pools))], pools)
        axes.set(xlabel="top-1 accuracy, %")
        set_title(axes, f"Linear probe: {method}")

    size = (6.0, 0.9 + (0.2 + 0.1 * len(results)) * len(pools))
    return ChartGrid(panels=[partial(draw, method) for method in methods], label=label, size=size)


def ground_truth_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Over the layers: ROC-AUC of the norm as a detector of background, and the share of background in outliers."""
    with_masks = {name: found.ground_truth[0].layers for name, found in results.items() if found.ground_truth}

    def detector(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            _line(axes, layers, [row.auc for row in rows], name, **_mark(model))
            low, high = [row.auc_low for row in rows], [row.auc_high for row in rows]
            axes.fill_between(layers, low, high, color=_color(model), alpha=0.2, linewidth=0)
        axes.axhline(0.5, color="#9aa4b0", linewidth=0.8)
        axes.set_ylim(0, 1)
        _finish(axes, "The norm as a detector of background", "ROC-AUC", ())

    def background(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            _line(axes, layers, [100 * row.outlier_background for row in rows], f"{name}: outliers", **_mark(model))
            low = [100 * row.outlier_background_low for row in rows]
            high = [100 * row.outlier_background_high for row in rows]
            axes.fill_between(layers, low, high, color=_color(model), alpha=0.2, linewidth=0)
            every = [100 * row.background for row in rows]
            _line(axes, layers, every, f"{name}: all tokens", color=_color(model), linestyle=DASHES[2])
        axes.set_ylim(0, 103)
        _finish(axes, "Background in outliers and in all tokens", "background, % of pixels", ())

    return ChartGrid(panels=[detector, background], label=label)


def similarity_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """The mean cosine between the registers of each model; no chart for a model without."""

    def draw(name: str, similarity: np.ndarray, axes: "Axes") -> None:
        picture = axes.imshow(similarity, vmin=-1, vmax=1, cmap="cividis")
        axes.set(xlabel="register", ylabel="register")
        set_title(axes, name)
        axes.locator_params(integer=True, min_n_ticks=1)
        axes.grid(visible=False)
        figure = axes.get_figure()
        assert figure is not None
        figure.colorbar(picture, ax=axes, shrink=0.8, label="cosine similarity")

    panels = [
        partial(draw, name, found.register_similarity.numpy())
        for name, found in results.items()
        if found.register_similarity is not None
    ]
    return ChartGrid(panels=panels, label=label, size=(3.9, 3.5))
