"""Charts of corruptions name their kinds and share one scale."""

from mambar.analysis.draw.corruption_charts import corruption_charts
from mambar.analysis.draw.plots import draw_chart_grid
from mambar.analysis.figure_label import FigureLabel


def test_a_chart_of_one_kind_names_it_and_the_scale_is_shared():
    top1 = {"fog": {1: 0.4, 5: 0.3}, "contrast": {1: 0.6, 5: 0.2}, "pixelate": {1: 0.5, 5: 0.5}}
    weather, digital = draw_chart_grid(corruption_charts(0.5, top1, FigureLabel())).axes
    assert weather.get_title(loc="left") == "Weather: fog" and weather.get_legend() is None
    assert [text.get_text() for text in digital.get_legend().get_texts()] == ["contrast", "pixelate"]
    assert weather.get_ylim() == digital.get_ylim() == (0, 63)
