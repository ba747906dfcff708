"""The model card: everything a reader needs, *not run* where so, and no markup from names."""

import re

import pytest
import torch
import yaml

from mambar.data import Preprocessing
from mambar.hub.card import NOT_RUN, escaped, model_card
from mambar.models import VisionMamba, VisionMambaConfig

TINY = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_registers=2, num_classes=3, d_state=4)


def tiny(classes=("ant", "bee", "cat")) -> VisionMamba:
    torch.manual_seed(0)
    model = VisionMamba(TINY)
    model.classes, model.preprocessing = classes, Preprocessing(img_size=16, crop_pct=0.875)
    return model


def section(card: str, name: str) -> str:
    return re.search(rf"## {name}\n\n(.*?)(?:\n\n## |\n\nWritten by)", card, re.DOTALL)[1]


def test_what_was_not_run_says_so():
    card = model_card(tiny(), name="digits")
    assert section(card, "Results").count(NOT_RUN) == 2 and section(card, "Token norms") == NOT_RUN
    assert section(card, "Recipe") == section(card, "Data") == "Not recorded."
    assert "license" not in card.split("---")[1]


def test_everything_given_is_shown():
    card = model_card(
        tiny(),
        name="digits",
        recipe={"epochs": 2, "lr": 1e-3},
        data="1,797 handwritten digits",
        results={"top-1": 0.989, "top-5": None, "mIoU": "not asked"},
        norms=[(0, 8.25, 10.0)],
        licence="apache-2.0",
    )
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "image-classification"
    assert '"epochs": 2' in section(card, "Recipe") and "1,797 handwritten digits" in section(card, "Data")
    assert "98.90%" in section(card, "Results") and section(card, "Results").count(NOT_RUN) == 1
    assert "| 0 | 8.2 | 10.0 |" in section(card, "Token norms")
    parameters = sum(parameter.numel() for parameter in tiny().parameters())
    assert f"{parameters:,}" in section(card, "Cost")
    assert "87.5%" in card and "3 classes: ant, bee, cat." in card


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "![](https://example.org/pixel.png)",
    "`code` ``more``",
    "a | b\n| c | d |\n---\nlicense: evil",
    "\x1b[2J\x00",
    "``````\n# Title\n",
    "https://example.org",
    "$\\mathrm{x}$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_stay_text(text):
    card = model_card(
        tiny((text, "b", "c")), name=text, recipe={text: text}, data=text, results={text: text}, licence=text
    )
    # Without the recipe's block and the YAML head, which are no markup.
    prose = re.sub(r"(`{3,})json\n.*?\n\1", "", card.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script" not in prose and "<img" not in prose and "\x1b" not in card and "\x00" not in card
    assert re.findall(r"(?<!\\)\]\((?!https://arxiv)", prose) == []
    assert yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["license"] == text
    fence = re.search(r"(`{3,})json\n(.*?)\n\1(?!`)", card, re.DOTALL)
    assert fence is not None and fence[1] not in fence[2]
    titles = [line for line in prose.splitlines() if line.startswith("#")]
    assert [title.split(" ")[0] for title in titles] == ["#", *["##"] * 6]
    tables = [line for line in section(card, "Results").splitlines() if line.startswith("|")]
    assert len(tables) == 5 and all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in tables)


def test_plain_text_stays_readable():
    assert escaped("golden retriever") == "golden retriever" and escaped("日本 été") == "日本 été"
