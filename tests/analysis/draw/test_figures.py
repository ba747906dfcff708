"""Every figure of a report, drawn for shallow and deep models, one and several: its texts are readable and complete."""

from itertools import combinations, pairwise

import pytest

from mambar.analysis.analyze_model import analyze_model
from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.draw import analysis_report
from mambar.analysis.draw.paper_figures import feature_map_figure, norm_figures, register_map_figure
from mambar.analysis.images import sample_gallery
from mambar.analysis.numbers import Analysis
from mambar.analysis.options import AnalysisOptions
from mambar.data import Preprocessing
from mambar.data.registry import open_dataset

# Name → (layers, registers).
CASES = {
    "one of 2 layers": {"Vim": (2, 1)},
    "one of 8 layers": {"a_run_with_a_very_long_name-n12-even-register-c0ffee1234-seed0": (8, 12)},
    "three of 2, 8 and 24 layers": {"Vim": (2, 1), "Mamba-R": (8, 12), "without registers": (24, 0)},
}


@pytest.fixture(scope="module", params=CASES)
def drawn(request, tmp_path_factory, fake_model_class):
    """The figures of one report by name, laid out but not written."""
    options = AnalysisOptions(gallery=1, num_images=8, folds=2)
    dataset = open_dataset("shapes", "val", img_size=16, num_classes=3, num_images=8)
    shown = sample_gallery(dataset, 1, seed=0)
    results = {}
    for name, (depth, registers) in CASES[request.param].items():
        model = fake_model_class(num_layers=depth, num_registers=registers)
        analyzed = AnalyzedModel(
            name=name,
            model=model,
            preprocessing=Preprocessing(img_size=16),
            random_weights=not registers,
            trained_size=(64, 64) if depth == 8 else None,
        )
        results[name] = analyze_model(analyzed, dataset, shown, options)
    analysis = Analysis(results=results, gallery=shown, data="shapes", options=options)
    figures, out = {}, tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_report, "svg", lambda figure: b"")
        patch.setattr(analysis_report, "png", lambda figure: figures.setdefault(len(figures), figure) and b"")
        analysis_report.write_analysis(out, analysis)
    names = [path.stem for path in sorted((out / "figures").glob("*.png"), key=lambda path: path.stat().st_mtime_ns)]
    of_paper = {**norm_figures(analysis), "feature_maps": feature_map_figure(analysis)}
    for name, found in results.items():
        if found.register_maps is not None:
            of_paper["register_maps"] = register_map_figure(analysis, name)
    for name, figure in of_paper.items():
        names.append(f"paper-{name}")
        figures[names[-1]] = figure
    for figure in figures.values():
        figure.draw_without_rendering()
    # Without outliers there is no accuracy of their positions, and no interval of it.
    page = (out / "report.html").read_text("utf-8")
    assert "0.0 to 100.0" not in page and "\N{REPLACEMENT CHARACTER}" not in page
    return dict(zip(names, figures.values(), strict=True))


def boxes(texts):
    """The extents of the texts that are shown."""
    return [text.get_window_extent() for text in texts if text.get_visible() and text.get_text().strip()]


def overlapping(first, second):
    return (
        min(first.x1, second.x1) - max(first.x0, second.x0) > 1
        and min(first.y1, second.y1) - max(first.y0, second.y0) > 1
    )


def test_every_type_is_drawn(drawn):
    expected = {"gallery-00", "norms-by-layer", "norm-distributions", "outliers", "probes", "ground-truth"}
    assert expected <= set(drawn)
    several = "registers-00-a" in drawn or "registers-00-b" in drawn
    assert several == ("register-similarity" in drawn)


def test_tick_labels_do_not_overlap(drawn):
    for name, figure in drawn.items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [
                    tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high
                ]
                labels = boxes(tick.label1 for tick in sorted(ticks, key=lambda tick: tick.get_loc()))
                assert not any(overlapping(*pair) for pair in pairwise(labels)), f"{name}: {axis}"


def test_axes_of_layers_have_whole_numbers(drawn):
    for name in ("norms-by-layer", "outliers", "ground-truth"):
        for axes in drawn[name].axes:
            labels = [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axes.get_xticklabels()]
            assert labels and all(label.lstrip("-").isdecimal() for label in labels)


def test_titles_and_labels_are_inside_and_apart(drawn):
    for name, figure in drawn.items():
        texts = [figure._supxlabel]
        for axes in figure.axes:
            titles = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            texts += [text for text in titles if text.get_text()] if axes.axison else []
        for extent in boxes(texts):
            assert extent.x0 >= -1 and extent.y0 >= -1, f"{name}: {extent}"
            assert extent.x1 <= figure.bbox.x1 + 1 and extent.y1 <= figure.bbox.y1 + 1, f"{name}: {extent}"
        assert not any(overlapping(*pair) for pair in combinations(boxes(texts), 2)), name


def test_color_bars_name_their_quantity(drawn):
    bars = [axes for figure in drawn.values() for axes in figure.axes if "_colorbar" in axes.__dict__]
    assert bars and all(axes.get_xlabel() or axes.get_ylabel() for axes in bars)


def test_maps_of_models_with_very_different_norms_have_a_log_scale(drawn):
    labels = {axes.get_xlabel() for axes in drawn["gallery-00"].axes}
    assert "L2 norm" in labels
    assert ("L2 norm, log scale" in labels) == ("without registers (random weights)" in caption(drawn["gallery-00"]))


def test_maps_are_as_large_as_their_photograph_and_in_line_with_it(drawn):
    for name in (name for name in drawn if name.startswith(("gallery", "registers")) or name.endswith("maps")):
        maps = [axes.get_window_extent() for axes in drawn[name].axes if axes.images and axes.axison]
        first = maps[0]
        for extent in maps:
            assert (extent.width, extent.height) == pytest.approx((first.width, first.height), abs=1.5)
        tops = sorted({round(extent.y0) for extent in maps})
        assert all(high - low > first.height for low, high in pairwise(tops)), f"{name}: {tops}"


def caption(figure):
    return " ".join(figure.get_supxlabel().replace("\N{NO-BREAK SPACE}", " ").split())


def test_captions_name_model_input_and_layer(drawn):
    for name, figure in drawn.items():
        assert all(f"{part}: " in caption(figure) for part in ("model", "input", "layer")), f"{name}: {caption(figure)}"


def test_charts_of_the_same_layers_share_one_legend(drawn):
    for name in ("paper-by_layer", "norm-distributions", "paper-distributions"):
        legends = [axes.get_legend() for axes in drawn[name].axes]
        if drawn[name].legends:
            assert len(drawn[name].legends) == 1 and not any(legends), name
    assert drawn["paper-by_layer"].legends


def test_random_weights_and_another_size_are_said_of_their_model(drawn):
    words = caption(drawn["gallery-00"])
    if "without registers" in words:
        assert "model: Vim, Mamba-R and without registers (random weights)" in words
        assert "input: 16 × 16 px and 16 × 16 px (trained at 64 × 64 px)" in words
        alone = caption(drawn["registers-00-b"])
        assert "model: Mamba-R · input: 16 × 16 px (trained at 64 × 64 px)" in alone and "random" not in alone
