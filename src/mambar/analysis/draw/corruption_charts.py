"""Charts of accuracy under common corruptions."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mambar.analysis.draw.plots import DASHES, SERIES, ChartGrid, set_title
from mambar.analysis.figure_label import FigureLabel
from mambar.data.transforms.corruptions import GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def corruption_charts(clean: float, top1: Mapping[str, Mapping[int, float]], label: FigureLabel) -> ChartGrid:
    """Top-1 by severity, one chart per group of corruptions, one line per kind; severity 0 is without corruption."""

    # The charts share one scale.
    top = 105 * max([clean, *(value for row in top1.values() for value in row.values())])

    def draw(group: str, kinds: list[str], axes: "Axes") -> None:
        for place, kind in enumerate(kinds):
            points = {0: clean, **top1[kind]}
            shown = [100 * value for value in points.values()]
            style = {"color": SERIES[place], "linestyle": DASHES[place], "marker": "os^D"[place], "markersize": 3.5}
            axes.plot(list(points), shown, label=kind.replace("_", " "), **style)
        axes.set(xlabel="severity", ylabel="top-1 accuracy, %", ylim=(0, top or 1))
        # A chart of one line has no legend.
        only = f": {kinds[0].replace('_', ' ')}" if len(kinds) == 1 else ""
        set_title(axes, group.capitalize() + only, columns=2)

    groups = {group: [kind for kind in kinds if kind in top1] for group, kinds in GROUPS.items()}
    panels = [partial(draw, group, kinds) for group, kinds in groups.items() if kinds]
    return ChartGrid(panels=panels, label=label)
