"""Charts of one or more `AnalysisResult`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.draw.plots import DASHES, SERIES, ChartGrid, auto_log_scale, label_text, set_title
from mambar.analysis.figure_label import FigureLabel
from mambar.analysis.measure.collect import CollectedNorms
from mambar.analysis.measure.distributions import NormDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, AnalysisResult]


def _color(model: int) -> str:
    return SERIES[model % len(SERIES)]


def _mark(model: int) -> dict[str, Any]:
    """Color and marker of a model; markers distinguish the lines in grayscale."""
    return {"color": _color(model), "marker": "os^D"[model % 4], "markersize": 3.5}


def distribution_charts(
    norms: Mapping[str, CollectedNorms], layers: Mapping[str, Sequence[int]], label: FigureLabel
) -> ChartGrid:
    """The density of token norms (both axes logarithmic), one chart per layer, one line per model, registers dotted.

    `layers` names the layers of each model; charts pair them in order.
    """

    def draw(place: int, axes: "Axes") -> None:
        numbers = []
        for model, (name, found) in enumerate(norms.items()):
            if place >= len(layers[name]):
                continue
            at = found.layers.index(layers[name][place])
            _density(axes, found.patches[at], _color(model), "-", name)
            _density(axes, found.registers[at], _color(model), ":", f"{name}, registers")
            numbers.append(str(layers[name][place]))
        axes.set(xscale="log", yscale="log", xlabel="L2 norm", ylabel="density")
        set_title(axes, "Layer " + " and ".join(dict.fromkeys(numbers)))

    count = max(len(chosen) for chosen in layers.values())
    return ChartGrid(panels=[partial(draw, place) for place in range(count)], label=label)


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
                named = label_text(f"{name}: {kind}")
                axes.plot(found.norms.layers, numbers, label=named, color=_color(model), linestyle=dash)
                values += numbers
        auto_log_scale(axes, values)
        axes.set(xlabel="layer", ylabel="L2 norm")
        set_title(axes, "Norm of image tokens", columns=len(results))

    def relative(axes: "Axes") -> None:
        values: list[float] = []
        for model, (name, found) in enumerate(results.items()):
            median = np.array([layer.median for layer in found.norms.patches])
            highest = np.array([layer.maximum for layer in found.norms.patches]) / median
            axes.plot(found.norms.layers, highest, label=label_text(f"{name}: maximum"), **_mark(model))
            values += highest.tolist()
            if found.norms.registers[0].count:
                registers = np.array([layer.median for layer in found.norms.registers]) / median
                named = label_text(f"{name}: register median")
                axes.plot(found.norms.layers, registers, label=named, color=_color(model), linestyle=DASHES[2])
                values += registers.tolist()
        auto_log_scale(axes, values)
        axes.set(xlabel="layer", ylabel="norm / median norm")
        set_title(axes, "Relative to the median of the image tokens")

    # The legend of two models has six lines.
    return ChartGrid(panels=[absolute, relative], label=label, size=(4.4, 3.2 if len(results) == 1 else 3.8))


def outlier_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """The share of tokens that each rule calls outliers, over the layers."""

    def draw(place: int, rule: str, axes: "Axes") -> None:
        for model, (name, found) in enumerate(results.items()):
            shares = [100 * layer.share for layer in found.outliers[place].layers]
            axes.plot(found.norms.layers, shares, label=label_text(name), **_mark(model))
        axes.set(xlabel="layer", ylabel="% of image tokens")
        axes.set_ylim(bottom=0)
        set_title(axes, rule[:1].upper() + rule[1:])

    rules = [statistics.rule for statistics in next(iter(results.values())).outliers]
    return ChartGrid(panels=[partial(draw, *each) for each in enumerate(rules)], label=label, columns=3)


def probe_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Top-1 accuracy of the pooling probes with 95 % intervals, one chart per method."""
    methods = list(dict.fromkeys(result.method for found in results.values() for result in found.probes))
    pools = list(dict.fromkeys(result.name for found in results.values() for result in found.probes))

    def draw(method: str, axes: "Axes") -> None:
        for model, (name, found) in enumerate(results.items()):
            probes = [probe for probe in found.probes if probe.method == method]
            y = [len(pools) - pools.index(probe.name) - 0.22 * model for probe in probes]
            middle = np.array([100 * probe.accuracy for probe in probes])
            ends = np.array([[100 * probe.low, 100 * probe.high] for probe in probes]).T
            style = {**_mark(model), "linestyle": "none", "capsize": 2}
            axes.errorbar(middle, y, xerr=np.abs(ends - middle), label=label_text(name), **style)
        axes.set_yticks([len(pools) - index for index in range(len(pools))], pools)
        axes.set(xlabel="top-1 accuracy, %")
        set_title(axes, f"Linear probe: {method}")

    size = (4.6, 1.3 + 0.27 * len(pools))
    return ChartGrid(panels=[partial(draw, method) for method in methods], label=label, size=size)


def ground_truth_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """Over the layers: ROC-AUC of the norm as a detector of background, and the share of background in outliers."""
    with_masks = {name: found.ground_truth[0].layers for name, found in results.items() if found.ground_truth}

    def detector(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            axes.plot(layers, [row.auc for row in rows], label=label_text(name), **_mark(model))
            low, high = [row.auc_low for row in rows], [row.auc_high for row in rows]
            axes.fill_between(layers, low, high, color=_color(model), alpha=0.2, linewidth=0)
        axes.axhline(0.5, color="#9aa4b0", linewidth=0.8)
        axes.set(xlabel="layer", ylabel="ROC-AUC")
        set_title(axes, "The norm as a detector of background")

    def background(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            there = [100 * row.outlier_background for row in rows]
            axes.plot(layers, there, label=label_text(f"{name}: outliers"), **_mark(model))
            every = [100 * row.background for row in rows]
            named = label_text(f"{name}: all tokens")
            axes.plot(layers, every, color=_color(model), linestyle=DASHES[2], label=named)
        axes.set(xlabel="layer", ylabel="% of pixels in the background", ylim=(0, 103))
        set_title(axes, "Background in outliers and in all tokens")

    return ChartGrid(panels=[detector, background], label=label)


def similarity_charts(results: Results, label: FigureLabel) -> ChartGrid:
    """The mean cosine between the registers of each model that has two or more; no chart where none has."""

    def draw(name: str, similarity: np.ndarray, axes: "Axes") -> None:
        picture = axes.imshow(similarity, vmin=-1, vmax=1, cmap="cividis")
        axes.set(title=label_text(name), xlabel="register", ylabel="register")
        axes.locator_params(integer=True)
        axes.grid(visible=False)
        figure = axes.get_figure()
        assert figure is not None
        figure.colorbar(picture, ax=axes, shrink=0.8, label="cosine similarity")

    shown = {name: found.register_similarity for name, found in results.items()}
    panels = [
        partial(draw, name, similarity.numpy())
        for name, similarity in shown.items()
        if similarity is not None and len(similarity) > 1
    ]
    return ChartGrid(panels=panels, label=label, size=(3.9, 3.5))
