"""Images with the boxes that object discovery found and the boxes of the objects."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mambar.analysis.draw.plots import SERIES, new_axes, sign, styled
from mambar.analysis.figure_label import FigureLabel
from mambar.analysis.measure.object_discovery import ShownObject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def draw_object_boxes(shown: Sequence[ShownObject], label: FigureLabel) -> "Figure":
    """One panel per image: box and seed found (solid, dot), boxes of the objects (dashed)."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    found_color, true_color = SERIES[1], SERIES[4]
    figure, axes = new_axes(len(shown), columns=6, size=(1.7, 1.7))
    # Legend and label need space of their own, also below a single image.
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, 5.1), height + 0.7)
    for axis, each in zip(axes, shown, strict=True):
        pixels = each.image if len(each.image) == 3 else np.repeat(each.image[:1], 3, axis=0)
        # Edges of pixels are at whole numbers, as in boxes.
        extent = (0, pixels.shape[2], pixels.shape[1], 0)
        axis.imshow(np.moveaxis(pixels, 0, -1), extent=extent, interpolation="nearest")
        boxes = [(box, true_color, "--") for box in each.boxes] + [(each.found, found_color, "-")]
        for (x0, y0, x1, y1), color, dash in boxes:
            axis.add_patch(
                Rectangle(
                    (x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linestyle=dash, linewidth=2, clip_on=False
                )
            )
        axis.plot(*each.seed, marker="o", color=found_color, markeredgecolor="white", markersize=6)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    lines = [Line2D([], [], color=found_color, linewidth=2, marker="o", label="found, with its seed")]
    if any(len(each.boxes) for each in shown):
        lines.append(Line2D([], [], color=true_color, linewidth=2, linestyle="--", label="object"))
    figure.legend(handles=lines, loc="outside upper left", ncols=2)
    sign(figure, label.line())
    return figure
