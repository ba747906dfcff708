"""Charts of what studies of one or two models found; drawing only, every number comes from a `Study`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mambar.analysis.analyze_model import Study
from mambar.analysis.draw.plots import DASHES, SERIES, Sheet, headline, label_text, wide_scale
from mambar.analysis.figure_label import FigureLabel
from mambar.analysis.measure.collect import CollectedNorms
from mambar.analysis.measure.distributions import NormDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Studies = Mapping[str, Study]


def _colour(model: int) -> str:
    return SERIES[model % len(SERIES)]


def _mark(model: int) -> dict[str, Any]:
    """Colour and marker of a model: they stay apart in grey."""
    return {"color": _colour(model), "marker": "os^D"[model % 4], "markersize": 3.5}


def distribution_sheet(
    norms: Mapping[str, CollectedNorms], layers: Mapping[str, Sequence[int]], label: FigureLabel
) -> Sheet:
    """The density of token norms (both axes logarithmic), one chart a layer, a line a model, registers dotted.

    `layers` names the layers of each model; charts pair them in order.
    """

    def chart(place: int) -> "Callable[[Axes], None]":
        def draw(axes: "Axes") -> None:
            numbers = []
            for model, (name, found) in enumerate(norms.items()):
                if place >= len(layers[name]):
                    continue
                at = found.layers.index(layers[name][place])
                _density(axes, found.patches[at], _colour(model), "-", name)
                _density(axes, found.registers[at], _colour(model), ":", f"{name}, registers")
                numbers.append(str(layers[name][place]))
            axes.set(xscale="log", yscale="log", xlabel="norm", ylabel="density")
            headline(axes, "Layer " + " and ".join(dict.fromkeys(numbers)))

        return draw

    count = max(len(chosen) for chosen in layers.values())
    return Sheet(panels=[chart(place) for place in range(count)], label=label)


def _density(axes: "Axes", distribution: NormDistribution, colour: str, dash: str, name: str) -> None:
    if not distribution.count:
        return
    edges, density = distribution.density(bins_per_octave=8)
    shown = np.where(density > 0, density, np.nan)
    axes.stairs(shown, edges, color=colour, linestyle=dash, linewidth=1.3, label=label_text(name), baseline=None)


def norm_sheet(studies: Studies, label: FigureLabel) -> Sheet:
    """Over the layers: median, 99 % quantile and maximum of the norms; maximum and registers over the median."""

    def absolute(axes: "Axes") -> None:
        values: list[float] = []
        for model, (name, found) in enumerate(studies.items()):
            lines = {
                "median": [layer.median for layer in found.norms.patches],
                "99 %": [layer.quantile(0.99) for layer in found.norms.patches],
                "maximum": [layer.maximum for layer in found.norms.patches],
            }
            for dash, (kind, numbers) in zip(DASHES, lines.items(), strict=False):
                named = label_text(f"{name}: {kind}")
                axes.plot(found.norms.layers, numbers, label=named, color=_colour(model), linestyle=dash)
                values += numbers
        wide_scale(axes, values)
        axes.set(xlabel="layer", ylabel="norm")
        headline(axes, "Norm of image tokens", columns=len(studies))

    def relative(axes: "Axes") -> None:
        values: list[float] = []
        for model, (name, found) in enumerate(studies.items()):
            median = np.array([layer.median for layer in found.norms.patches])
            highest = np.array([layer.maximum for layer in found.norms.patches]) / median
            axes.plot(found.norms.layers, highest, label=label_text(f"{name}: maximum"), **_mark(model))
            values += highest.tolist()
            if found.norms.registers[0].count:
                registers = np.array([layer.median for layer in found.norms.registers]) / median
                named = label_text(f"{name}: register median")
                axes.plot(found.norms.layers, registers, label=named, color=_colour(model), linestyle=DASHES[2])
                values += registers.tolist()
        wide_scale(axes, values)
        axes.set(xlabel="layer", ylabel="times the median")
        headline(axes, "Relative to the median token")

    # Six lines of two models need room for what they mean.
    return Sheet(panels=[absolute, relative], label=label, size=(4.4, 3.2 if len(studies) == 1 else 3.8))


def outlier_sheet(studies: Studies, label: FigureLabel) -> Sheet:
    """The share of tokens that each rule calls outliers, over the layers."""

    def chart(place: int, rule: str) -> "Callable[[Axes], None]":
        def draw(axes: "Axes") -> None:
            for model, (name, found) in enumerate(studies.items()):
                shares = [100 * layer.share for layer in found.outliers[place].layers]
                axes.plot(found.norms.layers, shares, label=label_text(name), **_mark(model))
            axes.set(xlabel="layer", ylabel="% of image tokens")
            axes.set_ylim(bottom=0)
            headline(axes, rule[:1].upper() + rule[1:])

        return draw

    rules = [statistics.rule for statistics in next(iter(studies.values())).outliers]
    return Sheet(panels=[chart(place, rule) for place, rule in enumerate(rules)], label=label, columns=3)


def probe_sheet(studies: Studies, label: FigureLabel) -> Sheet:
    """Top-1 accuracy of the pooling probes with 95 % intervals, one chart a method."""
    methods = list(dict.fromkeys(result.method for found in studies.values() for result in found.probes))
    pools = list(dict.fromkeys(result.name for found in studies.values() for result in found.probes))

    def chart(method: str) -> "Callable[[Axes], None]":
        def draw(axes: "Axes") -> None:
            for model, (name, found) in enumerate(studies.items()):
                results = [result for result in found.probes if result.method == method]
                y = [len(pools) - pools.index(result.name) - 0.22 * model for result in results]
                middle = np.array([100 * result.accuracy for result in results])
                ends = np.array([[100 * result.low, 100 * result.high] for result in results]).T
                style: dict[str, Any] = {"color": _colour(model), "fmt": "os^D"[model % 4], "markersize": 4}
                axes.errorbar(middle, y, xerr=np.abs(ends - middle), label=label_text(name), capsize=2, **style)
            axes.set_yticks([len(pools) - index for index in range(len(pools))], pools)
            axes.set(xlabel="top-1 accuracy, %")
            headline(axes, f"Linear probe: {method}")

        return draw

    return Sheet(panels=[chart(method) for method in methods], label=label, size=(4.6, 1.3 + 0.27 * len(pools)))


def truth_sheet(studies: Studies, label: FigureLabel) -> Sheet:
    """Over the layers: how well the norm finds the background, and the share of outliers that lie in it."""
    with_masks = {name: found.truth[0].layers for name, found in studies.items() if found.truth}

    def detector(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            axes.plot(layers, [row.auc for row in rows], label=label_text(name), **_mark(model))
            low, high = [row.auc_low for row in rows], [row.auc_high for row in rows]
            axes.fill_between(layers, low, high, color=_colour(model), alpha=0.2, linewidth=0)
        axes.axhline(0.5, color="#9aa4b0", linewidth=0.8)
        axes.set(xlabel="layer", ylabel="ROC-AUC")
        headline(axes, "The norm as a detector of background")

    def place(axes: "Axes") -> None:
        for model, (name, rows) in enumerate(with_masks.items()):
            layers = [row.layer for row in rows]
            there = [100 * row.outlier_background for row in rows]
            axes.plot(layers, there, label=label_text(f"{name}: outliers"), **_mark(model))
            every = [100 * row.background for row in rows]
            named = label_text(f"{name}: all tokens")
            axes.plot(layers, every, color=_colour(model), linestyle=DASHES[2], label=named)
        axes.set(xlabel="layer", ylabel="% of their pixels in the background", ylim=(0, 103))
        headline(axes, "Where outliers lie")

    return Sheet(panels=[detector, place], label=label)


def similarity_sheet(studies: Studies, label: FigureLabel) -> Sheet:
    """The mean cosine between the registers of each model that has two or more; no chart where none has."""

    def chart(name: str, found: Study) -> "Callable[[Axes], None]":
        def draw(axes: "Axes") -> None:
            assert found.register_similarity is not None
            picture = axes.imshow(found.register_similarity.numpy(), vmin=-1, vmax=1, cmap="cividis")
            axes.set(title=label_text(name), xlabel="register", ylabel="register")
            axes.grid(visible=False)
            figure = axes.get_figure()
            assert figure is not None
            figure.colorbar(picture, ax=axes, shrink=0.8, label="cosine")

        return draw

    shown = {
        name: found
        for name, found in studies.items()
        if found.register_similarity is not None and len(found.register_similarity) > 1
    }
    return Sheet(panels=[chart(name, found) for name, found in shown.items()], label=label, size=(3.9, 3.5))
