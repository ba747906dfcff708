"""A wrong or missing cell can never look like a measured one."""

import csv
import html.parser
import io
import math

import pytest

from mambar.errors import InputError
from mambar.paper.claim import Claim, Provenance, Result
from mambar.paper.render import NOT_RUN, provenance, render

CLAIMS = (
    Claim(row="Base", column="top-1, %", value=82.9, version="v1", source="paper"),
    Claim(row="Base", column="top-1, %", value=83.0, version="v2", source="paper"),
    Claim(row="Tiny", column="top-1, %", value=77.4, version="v1", source="paper", known="derived"),
)
WHERE = {
    "command": "mambar reproduce x",
    "commit": "abc",
    "machine": "a machine",
    "date": "2026-01-01",
    "data": "digits",
    "seeds": (0,),
}


def result(row="Base", budget="full", values=(82.5,), **where):
    return Result(row=row, column="top-1, %", budget=budget, values=values, provenance=Provenance(**{**WHERE, **where}))


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] != "|-"]


def test_a_cell_that_was_not_run_says_so():
    header, base, tiny = cells(render(CLAIMS, []))
    assert header == ["", "", "paper (v1)", "paper (v2)", "ours", "difference"]
    assert base == ["Base", "top-1, %", "82.9", "83", NOT_RUN, "–"]
    assert tiny == ["Tiny", "top-1, %", "77.4 (derived)", "–", NOT_RUN, "–"]


def test_only_a_full_cell_is_held_against_the_paper():
    header, base, tiny = cells(render(CLAIMS, [result(), result(row="Tiny", budget="smoke", values=(99.0,))]))
    assert header[4:] == ["ours", "difference", "ours, smoke (not comparable)"]
    assert base[4:] == ["82.5", "-0.5 (v2)", NOT_RUN]
    assert tiny[4:] == [NOT_RUN, "–", "99"]


def test_several_seeds_carry_an_interval():
    text = render(CLAIMS, [result(values=(82.0, 83.0), seeds=(0, 1))])
    assert "82.5 ± 6.353 (2 seeds)" in text


@pytest.mark.parametrize("values", [(math.nan,), (math.inf,), (), ("82.9",)])
@pytest.mark.wrong_shapes
def test_what_is_no_number_is_refused(values):
    with pytest.raises(InputError, match="not measured numbers"):
        result(values=values)


@pytest.mark.parametrize("field", ["command", "commit", "machine", "date", "data"])
def test_a_number_without_its_origin_is_refused(field):
    with pytest.raises(InputError, match=f"without {field} is not allowed"):
        result(**{field: " "})


def test_seeds_and_values_must_agree():
    with pytest.raises(InputError, match="1 values for 2 seeds"):
        result(seeds=(0, 1))


def test_two_results_for_one_cell_are_refused():
    with pytest.raises(InputError, match="two results for Base"):
        render(CLAIMS, [result(), result(values=(80.0,))])


@pytest.mark.wrong_shapes
def test_an_unknown_budget_or_format_is_refused():
    with pytest.raises(InputError, match="choose one of smoke, small, full"):
        result(budget="tiny")
    with pytest.raises(InputError, match="choose markdown, html or csv"):
        render(CLAIMS, [], format="pdf")


def test_hostile_rows_stay_text():
    hostile = result(row="<script>alert(1)</script>|=cmd()")
    seen = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)

    Tags().feed(render(CLAIMS, [hostile], format="html"))
    assert set(seen) == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    rows = list(csv.reader(io.StringIO(render((), [result(row="=cmd()")], format="csv"))))
    assert rows[1][0] == "'=cmd()"
    assert "\\|" in render(CLAIMS, [hostile])


def test_provenance_is_written_once_a_group():
    text = provenance([result(), result(row="Tiny")])
    assert text.count("\n") == 1 and "commit abc" in text and "seeds 0" in text
