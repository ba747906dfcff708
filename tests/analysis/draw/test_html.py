from html.parser import HTMLParser

import pytest

from mambar.analysis.draw import html
from mambar.analysis.figure_label import FigureLabel, layer_name, printable


class Census(HTMLParser):
    """Counts elements and attribute names; keeps the text."""

    def __init__(self):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text.append(data)


def census(page):
    parser = Census()
    parser.feed(page if isinstance(page, str) else page.decode("utf-8"))
    return parser


def everything(value):
    """A page that puts one string wherever a string can go."""
    return html.page(
        value,
        html.section(value, html.element("p", value, title=value)),
        html.tiles({value: value}),
        html.table([value], [[value]]),
        html.pairs({value: value}),
        html.figure(html.image(b"x", description=value), caption=FigureLabel(model=value, data=value).line()),
    )


@pytest.mark.rel
def test_hostile_strings_add_no_element_and_no_attribute(hostile):
    plain, found = census(everything("plain")), census(everything(hostile))
    assert found.elements == plain.elements
    assert found.attributes == plain.attributes
    assert not [name for name in found.attributes if name.startswith("on")]


def test_the_census_catches_an_unescaped_string():
    careless = "<p>" + '<img src=x onerror="alert(1)">' + "</p>"
    assert "onerror" in census(careless).attributes


def test_page_allows_nothing_from_elsewhere():
    text = html.page("t", html.element("p", "x")).decode()
    assert "default-src &#x27;none&#x27;" in text
    assert "<script" not in text and "http://" not in text and "https://" not in text


def test_markup_is_kept_and_text_is_escaped():
    assert html.element("p", html.element("b", "a<b")) == "<p><b>a&lt;b</b></p>"
    assert html.element("td", "x", class_='"', row_span=2) == '<td class="&quot;" row-span="2">x</td>'


def test_columns_of_words_read_from_the_left():
    page = html.table(("name", "share", "note"), [("a", "5 %", "x"), ("b", "–", 3)])
    assert '<th scope="col" class="words">name</th><th scope="col" class="numbers">share</th>' in page
    assert html.table(("a", "b"), []).count("<th ") == 2


def test_lists_and_none_in_settings_are_readable():
    page = html.pairs({"a.b": 1, "a.c": [1, 2], "none": None})
    assert census(page).text == ["a.b", "1", "a.c", "1, 2", "none", "–"]


def test_credentials_and_control_characters_are_not_shown():
    assert printable("https://user:pass@host/x") == "https://…@host/x"
    assert printable("a\x1b[31mb\u202ec\ud800") == "a\ufffd[31mb\ufffdc\ufffd"


def test_label_names_every_choice():
    label = FigureLabel(
        tensor="mixer",
        layer=layer_name(5, 6),
        metric="L2",
        model="m",
        data="d",
        seed=3,
        random_weights=True,
        version="1",
    )
    assert label.line() == (
        "tensor: mixer output · layer: 5 of 0–5, last · metric: L2 · model: m · data: d · "
        "seed: 3 · random weights · mambar 1"
    )
