"""The report of a training run: report.html and curves.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from mambar.analysis.draw import html
from mambar.analysis.draw.confusion import ExamplePrediction, confusion_table, example_predictions
from mambar.analysis.draw.curves import Row, collect_curves, curve_section, draw_curves
from mambar.analysis.draw.norm_panels import NormPanel, panel
from mambar.analysis.draw.plots import png
from mambar.atomic_files import write_atomically


def write_run_report(
    path: Path,
    *,
    title: str,
    recipe: Mapping[str, object],
    metrics: Mapping[str, Sequence[Row]],
    model: str = "",
    classes: Sequence[str] = (),
    confusion: Integer[np.ndarray, "classes classes"] | None = None,
    predictions: Sequence[ExamplePrediction] = (),
    norm_panels: Mapping[str, Sequence[NormPanel]] | None = None,
    summary: Mapping[str, object] | None = None,
    introduction: str = "",
    sections: Sequence[html.Html] = (),
) -> Path:
    """Writes `path` (an HTML file) and curves.png in the same directory; returns `path`.

    `metrics` maps the name of each run to its rows of metrics.jsonl, the report's own run first; `model` names the
    model of `confusion` and `predictions`; `norm_panels` maps headings to rows of norm maps; `summary` is shown at the
    top, `sections` before the recipe. Parts that are not given are omitted.
    """
    curves = collect_curves(metrics)
    content = [
        html.element("h1", title),
        html.element("p", introduction, class_="lead") if introduction else "",
        html.tiles(summary) if summary else "",
        curve_section(curves),
        _confusion_section(confusion, classes, model),
        _prediction_section(predictions, confusion, model),
        _norm_section(norm_panels or {}),
        *sections,
        html.section("Recipe", html.pairs(recipe)),
        html.footer(),
    ]
    write_atomically(path.with_name("curves.png"), png(draw_curves(curves, title=title)))
    write_atomically(path, html.page(title, *content))
    return path


Confusion = Integer[np.ndarray, "classes classes"]


def _confusion_section(confusion: Confusion | None, classes: Sequence[str], model: str) -> html.Html:
    if confusion is None:
        return html.Html("")
    total, num_correct = int(confusion.sum()), int(np.trace(confusion))
    share = f"{_of(model)}{num_correct:,} of {total:,} validation images correct ({num_correct / max(total, 1):.2%})."
    return html.section("Confusion matrix", html.element("p", share), confusion_table(confusion, classes))


def _prediction_section(predictions: Sequence[ExamplePrediction], confusion: Confusion | None, model: str) -> html.Html:
    if not predictions:
        return html.Html("")
    wrong = sum(not example.correct for example in predictions)
    errors = "" if confusion is None else f" of {int(confusion.sum() - np.trace(confusion)):,}"
    note = (
        f"{_of(model)}{wrong}{errors} misclassified validation images, and {len(predictions) - wrong} correct ones of "
        "low probability."
    )
    return html.section("Example predictions", html.element("p", note, class_="note"), example_predictions(predictions))


def _of(model: str) -> str:
    return f"{model}: " if model else ""


def _norm_section(groups: Mapping[str, Sequence[NormPanel]]) -> html.Html:
    if not any(groups.values()):
        return html.Html("")
    explanation = (
        "Each square is one image token; bright means a high norm. In vision Mamba some background tokens get very "
        "high norms and hold global instead of local information (arXiv 2405.14858); register tokens are meant to "
        "replace them. The maps of a row share one scale."
    )
    content: list[object] = [html.element("p", explanation)]
    for heading, rows in groups.items():
        content += [html.element("h3", heading), *(panel(row) for row in rows)]
    return html.section("Token norms in the last layer", *content)
