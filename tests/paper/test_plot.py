"""Drawn results: every run a point at its value, an interval only where there are several."""

from dataclasses import replace

import pytest

from mambar.analysis.draw.plots import png
from mambar.paper.claim import Provenance, Result
from mambar.paper.plot import draw_layers, draw_results, draw_training


def result(row, values, column="top-1, %", seeds=None):
    seeds = tuple(range(len(values))) if seeds is None else seeds
    where = Provenance(command="c", commit="abc", machine="m", date="2026-01-01", data="some $data", seeds=seeds)
    return Result(row=row, column=column, budget="small", values=values, provenance=where)


def test_points_are_runs_and_bars_need_several():
    figure = draw_results([result("first", (70.0, 72.0)), result("second", (75.0,))])
    (axes,) = figure.axes
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in points] == [[70.0, 72.0], [75.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["second", "first"]
    assert len(axes.containers) == 1
    assert axes.containers[0].lines[0].get_xdata() == pytest.approx([71.0])
    assert "seeds 0, 1" in figure.get_supxlabel() and r"\$data" in figure.get_supxlabel()


def test_a_chart_for_every_column_and_none_for_nothing():
    figure = draw_results([result("first", (1.0,)), result("first", (2.0,), column="norm")])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["top-1, %", "norm"]
    assert draw_results([]) is None


def test_budgets_are_told_apart():
    counted = replace(result("first", (9.0,), column="parameters, M"), budget="full")
    speeds = [result(row, (31.0,), column="img/s") for row in ("first", "second")]
    figure = draw_results([counted, *speeds])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["parameters, M (full)", "img/s (small)"]
    assert "budget full and small" in figure.get_supxlabel()
    assert [len(axes.get_yticklabels()) for axes in figure.axes] == [1, 2]


def look(step, share):
    return {"kind": "health", "step": step, "outlier_share": share}


def test_statistics_of_the_layers_are_one_line_a_seed():
    rows = [{"kind": "training", "step": 1}, look(10, [0.0, 0.01]), look(20, [0.0, 0.02])]
    layers = {"norm_max": [2.0, 90.0], "outlier_share": [0.0, 0.02], "outlier_background": [None, 0.5]}
    # The second run of Mamba-R was stored without layers, and logged none.
    training = {"Vim": [rows, rows], "Mamba-R": [rows, []]}
    figure = draw_layers({"Vim": [layers, layers], "Mamba-R": [layers, {}]}, training, data="d")
    assert figure.axes[0].get_title(loc="left") == "Largest norm" and len(figure.axes) == 4
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 3, 3, 3]
    by_layer, course = figure.axes[1].get_lines()[0], figure.axes[3].get_lines()[0]
    assert list(by_layer.get_ydata()) == [0.0, 2.0] and figure.axes[0].get_yscale() == "log"
    assert list(course.get_xdata()) == [10, 20] and list(course.get_ydata()) == [1.0, 2.0]
    assert len(figure.legends) == 1 and png(figure)[:4] == b"\x89PNG"
    assert draw_layers({"Vim": [{}]}, {"Vim": [[]]}, data="d") is None


def test_the_largest_norm_is_also_drawn_relative_to_the_median():
    layers = {"norm_median": [2.0, 3.0], "norm_max": [4.0, 9.0]}
    axes = {
        axes.get_title(loc="left"): axes for axes in draw_layers({"Vim": [layers], "Mamba-R": []}, {}, data="d").axes
    }
    assert list(axes["Largest norm / median"].get_lines()[0].get_ydata()) == [2.0, 3.0]
    # A linear axis starts at zero, so that heights can be compared.
    assert len(axes) == 3 and {each.get_ylim()[0] for each in axes.values()} == {0.0}


def test_layers_over_training_are_means_of_the_common_steps_on_one_scale():
    def logged(*shares):
        return [{**look(10 * (n + 1), [0.0, share]), "norm_max": [2.0, 9.0]} for n, share in enumerate(shares)]

    figure = draw_training({"Vim": [logged(0.0, 0.02, 0.5), logged(0.02, 0.04)], "Mamba-R": [logged(0.1)]}, data="d")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["Vim", "Vim", "Mamba-R", "Mamba-R"]
    shares = panels[0].collections[0]
    assert shares.get_array().tolist() == [[0.0, 0.0], pytest.approx([1.0, 3.0])]
    assert shares.get_clim() == panels[2].collections[0].get_clim() == (0.0, pytest.approx(10.0))
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["10", "20"]
    assert "mean of 1 and 2 seeds" in figure.get_supxlabel() and png(figure)[:4] == b"\x89PNG"
    assert draw_training({"Vim": [[]]}, data="d") is None


def test_the_rows_of_an_ablation_differ_in_color_or_dashes():
    rows = {f"row {number}": [{"norm_max": [2.0, 9.0]}] for number in range(18)}
    figure = draw_layers(rows, {}, data="d")
    styles = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in figure.axes[0].get_lines()}
    assert len(styles) == 18 and len(figure.legends[0].get_texts()) == 18
