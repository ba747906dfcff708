"""The confusion matrix: counts of examples, or shares of pixels."""

import re

import numpy as np
import pytest

from mambar.analysis.draw.confusion import confusion_table
from mambar.errors import InputError

CONFUSION = np.array([[3000, 1000, 0], [4, 396, 0], [0, 0, 0]])


def cells(html):
    """The texts of the cells, row by row, and each row's heading."""
    return [
        (re.findall(r"<th[^>]*>([^<]*)</th>", row)[0], re.findall(r"<td[^>]*>([^<]*)</td>", row))
        for row in re.findall(r"<tr>(.*?)</tr>", html)
        if "<td" in row
    ]


def test_examples_are_counted():
    matrix, pairs = confusion_table(CONFUSION, ["cat", "dog", "ant"]).split("Most often confused")
    assert cells(matrix) == [
        ("cat", ["3000", "1000", "·"]),
        ("dog", ["4", "396", "·"]),
        ("ant", ["·", "·", "·"]),
    ]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", pairs) == ["cat", "dog", "1,000", "4,000", "dog", "cat", "4", "400"]


def test_pixels_are_per_cent_of_their_row():
    html = confusion_table(CONFUSION, ["pavement", "sky", "tree"], unit="pixel")
    matrix, pairs = html.split("Most often confused")
    # Long names stand before the rows only; columns have their numbers.
    assert cells(matrix) == [
        ("pavement  0", ["75", "25", "·"]),
        ("sky  1", ["1", "99", "·"]),
        ("tree  2", ["·", "·", "·"]),
    ]
    assert "per cent of the true class" in matrix and ">pixels</th>" in pairs


def test_many_classes_become_a_picture():
    html = confusion_table(np.eye(30, dtype=np.int64) * 4, [f"c{i}" for i in range(30)])
    assert "<table" not in html and "data:image/png" in html and "Every example was classified correctly." in html


def test_confusion_of_another_size_is_refused():
    with pytest.raises(InputError, match="2 classes"):
        confusion_table(np.eye(3, dtype=np.int64), ["a", "b"])
