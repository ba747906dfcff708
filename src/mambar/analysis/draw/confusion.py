"""The confusion matrix and example predictions as HTML; class names are always escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Integer, Shaped

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import apply_colormap, color_scale, encode_png, photograph_html, to_uint8
from mambar.errors import InputError

# Cells of more classes are too small for numbers; the matrix is drawn as an image.
MAX_CLASSES_IN_CELLS = 20
# What a matrix counts.
Unit = Literal["example", "pixel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExamplePrediction:
    """One example: the image, its true class, the predicted class and the probability given to it (0-1)."""

    image: Shaped[np.ndarray, "channels height width"]
    true: str
    predicted: str
    probability: float

    @property
    def correct(self) -> bool:
        """True if the predicted class is the true one."""
        return self.true == self.predicted


def confusion_table(
    confusion: Integer[np.ndarray, "classes classes"], classes: Sequence[str], *, unit: Unit = "example"
) -> html.Html:
    """The matrix (rows: true class, columns: predicted), as an image if there are many classes.

    Cells hold the number of examples, or the percentage of the row's pixels.
    """
    if confusion.shape != (len(classes), len(classes)):
        raise InputError(
            f"confusion has shape {confusion.shape} but there are {len(classes)} classes; "
            "give one row and one column a class."
        )
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    if len(classes) <= MAX_CLASSES_IN_CELLS:
        matrix = _cells(confusion, shares, classes, unit)
    else:
        picture = encode_png(apply_colormap(shares, color_scale(0, 1)))
        matrix = html.image(picture, description="confusion matrix", class_="nearest")
    caption = "Rows: true class. Columns: predicted class. Shade: share of the row."
    if unit == "pixel" and len(classes) <= MAX_CLASSES_IN_CELLS:
        caption += " Numbers: per cent of the true class's pixels."
    return html.join([html.figure(matrix, caption=caption), _confused_pairs(confusion, classes, unit)])


def _cells(
    confusion: Integer[np.ndarray, "classes classes"],
    shares: Shaped[np.ndarray, "classes classes"],
    classes: Sequence[str],
    unit: Unit,
) -> html.Html:
    short = all(len(name) <= 3 for name in classes)
    columns = [name if short else str(index) for index, name in enumerate(classes)]
    names = list(classes) if short else [f"{name}  {index}" for index, name in enumerate(classes)]
    head = html.element("tr", html.element("th"), *(html.element("th", name) for name in columns))
    rows = []
    for i, name in enumerate(names):
        cells = (_cell(int(confusion[i, j]), float(shares[i, j]), unit) for j in range(len(classes)))
        rows.append(html.element("tr", html.element("th", name, scope="row"), *cells))
    parts = (html.element("thead", head), html.element("tbody", *rows))
    matrix = html.element("table", *parts, class_="matrix" if short else "matrix names")
    return html.element("div", matrix, class_="scroll")


def _cell(count: int, share: float, unit: Unit) -> html.Html:
    """One cell: white at 0, dark blue at 1; the square root keeps a few confusions visible."""
    depth = share**0.5
    red, green, blue = (round(255 + (dark - 255) * depth) for dark in (11, 60, 110))
    ink = "#ffffff" if depth > 0.55 else "#1c2430"
    text = str(count) if unit == "example" else f"{100 * share:.0f}"
    if text == "0":
        return html.element("td", "·", style="color:#9aa4b0")
    return html.element("td", text, style=f"background:rgb({red},{green},{blue});color:{ink}")


def _confused_pairs(confusion: Integer[np.ndarray, "classes classes"], classes: Sequence[str], unit: Unit) -> html.Html:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:5]
    pairs = [divmod(int(flat), len(classes)) for flat in order if wrong.flat[flat] > 0]
    if not pairs:
        return html.element("p", f"Every {unit} was classified correctly.")
    rows = [
        (classes[true], classes[predicted], f"{wrong[true, predicted]:,}", f"{confusion[true].sum():,}")
        for true, predicted in pairs
    ]
    head = ("true", "predicted", f"{unit}s", "of")
    return html.join([html.element("h3", "Most often confused"), html.table(head, rows)])


def example_predictions(predictions: Sequence[ExamplePrediction]) -> html.Html:
    """The examples side by side; wrong ones have a dashed red frame and name the true class."""
    return html.element("div", *(_example(example) for example in predictions), class_="examples")


def _example(example: ExamplePrediction) -> html.Html:
    result = example.predicted if example.correct else f"{example.predicted}, not {example.true}"
    return html.element(
        "div",
        photograph_html(to_uint8(example.image), f"predicted {result}", max_size=224),
        html.element("b", result),
        f"probability {example.probability:.1%}",
        class_="example" if example.correct else "example wrong",
    )
