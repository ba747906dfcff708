"""Charts whose words fit beside them, whatever the models are called."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mambar.analysis.draw.color_maps import MapStyle, color_scale, map_html
from mambar.analysis.draw.plots import ChartGrid, draw_chart_grid, new_figure, set_title
from mambar.analysis.figure_label import FigureLabel

LABEL = FigureLabel(tensor="residual", layer="all", metric="norm", model="m", data="d", seed=0)


def chart(names, columns):
    def draw(axes):
        for place, name in enumerate(names):
            axes.plot([0, 1], [place, place + 1], label=name)
        set_title(axes, "What is shown", columns=columns)

    figure = draw_chart_grid(ChartGrid(panels=[draw, draw], label=LABEL))
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("length", [3, 12, 23, 90])
def test_legends_end_where_their_chart_ends(length):
    names = [f"{kind}{('mambar_tiny_patch' * 6)[: length - 2]}{kind}" for kind in "abcd"]
    figure = chart(names, columns=2)
    half = figure.bbox.width / 2
    for place, axes in enumerate(figure.axes):
        legend = axes.get_legend()
        assert legend.get_window_extent().x1 <= half * (place + 1) + 1
        shown = [text.get_text() for text in legend.get_texts()]
        assert all(text[0] == name[0] and text[-1] == name[-1] for text, name in zip(shown, names, strict=True))
        assert (shown == names) == (length <= 23)
        # A legend that takes the width away leaves no chart.
        assert axes.get_window_extent().width > 0.75 * half


def test_one_line_needs_no_legend():
    axes = chart(["alone"], columns=2).axes[0]
    assert axes.get_legend() is None and axes.get_title(loc="left") == "What is shown"


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000), (400, 2)])
def test_maps_and_figures_are_bounded_for_any_shape(shape):
    values = np.linspace(0.0, 1.0, shape[0] * shape[1]).reshape(shape)
    for resampling in ("nearest", "bicubic"):
        shown = map_html(values, "map", color_scale(0.0, 1.0), MapStyle(resampling=resampling))
        data = base64.b64decode(re.search(r"base64,([^\"]+)", str(shown))[1])
        with Image.open(io.BytesIO(data)) as picture:
            assert max(picture.size) <= 3000 and picture.width * picture.height <= 448 * 1344
    figure = new_figure((9.0, 9e4))
    assert figure.get_size_inches().tolist() == [9.0, 60.0]
