"""Elements of a self-contained HTML page without scripts or network access.

Every string is escaped; only `Html` is markup. `Html` is returned by `element` and the functions below, so a class
name or a file name cannot become an element or an attribute.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Final

from mambar.analysis.figure_label import printable
from mambar.version import __version__

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_VOID_ELEMENTS = frozenset({"img", "meta", "br", "hr", "col"})


class Html(str):
    """Markup, which is not escaped again; returned by `element`, never made from user input."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value), quote=True))


def join(children: Iterable[object]) -> Html:
    """The concatenated children, each escaped unless it is `Html`."""
    return Html("".join(text(child) for child in children))


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """The element `name` with escaped children and attributes (`class_`: `class`; `row_span`: `row-span`)."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID_ELEMENTS:
        return Html(f"<{name}{pairs}>")
    return Html(f"<{name}{pairs}>{join(children)}</{name}>")


def image(data: bytes, *, description: str, media_type: str = "image/png", class_: str | None = None) -> Html:
    """An image embedded in the page; `description` is the text for screen readers."""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    # Base64 needs no escaping.
    named = "" if class_ is None else f' class="{text(class_)}"'
    return Html(f'<img src="{source}" alt="{text(description)}"{named}>')


def svg_image(data: bytes, *, description: str, class_: str | None = None) -> Html:
    """An SVG file as an image."""
    return image(data, description=description, media_type="image/svg+xml", class_=class_)


def figure(*content: object, caption: object, class_: str | None = None) -> Html:
    """A figure with its caption."""
    return element("figure", *content, element("figcaption", caption), class_=class_)


def footer() -> Html:
    """The footer of a report."""
    return element("footer", f"Written by mambar {__version__}. The page is self-contained.", class_="note")


def section(title: str, *content: object) -> Html:
    """A section of the page under a heading."""
    return element("section", element("h2", title), *content)


def tiles(values: Mapping[str, object]) -> Html:
    """The main numbers of a report, as tiles."""
    return element(
        "div",
        *(element("div", element("b", value), element("span", name), class_="tile") for name, value in values.items()),
        class_="tiles",
    )


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, class_: str | None = None) -> Html:
    """A table that scrolls horizontally on a narrow page."""
    given = [tuple(row) for row in rows]
    kinds = ["words" if all(_is_words(cell) for cell in column) else "numbers" for column in zip(*given, strict=True)]
    kinds = kinds or ["words"] * len(header)
    names = (element("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True))
    lines = (
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in given
    )
    head, body = element("thead", element("tr", *names)), element("tbody", *lines)
    return element("div", element("table", head, body, class_=class_), class_="scroll")


def _is_words(cell: object) -> bool:
    """True for a left-aligned cell: text that does not begin with a number."""
    return isinstance(cell, str) and cell[:1].isalpha()


def pairs(values: Mapping[str, object]) -> Html:
    """Settings as a table of names and values; a list is one line, None a dash."""
    rows = (element("tr", element("td", name), element("td", _shown(value))) for name, value in values.items())
    return element("div", element("table", element("tbody", *rows), class_="pairs"), class_="columns")


def _shown(value: object) -> object:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else value


def page(title: str, *content: object) -> bytes:
    """The page as UTF-8, with its style sheet."""
    style = resources.files("mambar.analysis.draw").joinpath("report.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{text(CONTENT_SECURITY_POLICY)}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    document = element("html", head, element("body", element("main", *content)), lang="en")
    return f"<!doctype html>\n{document}\n".encode()
