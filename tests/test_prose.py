"""Documents have short lines and short sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
MAX_LINE = 120
MAX_WORDS = 35


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line) without code, tables, images and the directives of the API page."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "![", ":::", "    options", "      ")):
            yield number, line


def sentences(text: str) -> Iterator[str]:
    """The sentences of the paragraphs and list items."""
    paragraphs, current = [], ""
    for _, line in prose(text):
        starts = re.match(r"\s*(\*|-|\d+\.|#|!\[|>)\s", line) or not line.strip()
        if starts:
            paragraphs.append(current)
            current = ""
        current += " " + line.strip()
    for paragraph in [*paragraphs, current]:
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
        plain = re.sub(r"`[^`]*`", "Code", plain)
        yield from re.split(r"(?<=[.:;?!])\*{0,2}\s+(?=[A-Z0-9`*(])|(?<=[:;])\s", plain)


def too_long(text: str) -> list[str]:
    """Lines over MAX_LINE characters and sentences over MAX_WORDS words."""
    lines = [f"line {number}: {len(line)} characters" for number, line in prose(text) if len(line) > MAX_LINE]
    split = map(str.split, sentences(text))
    return lines + [f"{len(words)} words: {' '.join(words)}" for words in split if len(words) > MAX_WORDS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_and_sentences_are_short(page):
    assert too_long(page.read_text("utf-8")) == []


def test_a_long_sentence_and_a_long_line_are_found():
    assert too_long("word " * 36 + ".")
    assert too_long("x" * 121)
    assert not too_long("```text\n" + "x" * 200 + "\n```\n| " + "cell " * 50 + "|\n\nA short sentence.\n")
