"""Explanations as markup: names are text, both models in one scale, files that say what they are."""

import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.data import Preprocessing
from mambar.data.synthetic.photographs import photographs
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.web import views
from mambar.web.explain import explain
from mambar.web.views import ViewSettings

SMALL = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=3, num_registers=2, num_classes=3, d_state=4)
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1) $\\frac{1}$")


class Elements(HTMLParser):
    """All elements of a text, their attributes, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def found():
    analyzed_models = []
    for name in ("<b>ours</b>", "vim"):
        torch.manual_seed(len(name))
        model = VisionMamba(SMALL).eval()
        analyzed_models.append(
            AnalyzedModel(name=name, model=model, preprocessing=Preprocessing(img_size=32), classes=HOSTILE)
        )
    return explain(analyzed_models, photographs("chelsea")["chelsea"], name="<i>chelsea</i>")


@pytest.mark.parametrize("part", [views.predictions_html, views.maps_html, views.histogram_html, views.share_html])
def test_hostile_names_become_no_element(found, part):
    page = Elements(part(found, ViewSettings(layer=1)))
    assert not {"script", "b", "i"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in page.attributes if name in ("src", "href"))


def test_the_probe_sees_an_element():
    """Negative control: unescaped names would be seen."""
    page = Elements(HOSTILE[0] + HOSTILE[1])
    assert "script" in page.tags and ("onerror", "alert(1)") in page.attributes


def test_classes_and_both_models_are_named(found):
    words = "".join(Elements(views.predictions_html(found, ViewSettings(layer=0))).words)
    assert all(name in words for name in (*HOSTILE, "<b>ours</b>", "vim")) and "%" in words and " ms" in words
    alone = "".join(Elements(views.predictions_html(found, ViewSettings(layer=0, compare=False))).words)
    assert "vim" not in alone


def test_both_models_share_one_scale(found):
    row = views.gallery(found, ViewSettings(layer=2)).rows[0]
    values = torch.cat([view.norm_maps()[2].flatten() for view in found.views])
    assert (row.colors().vmin, row.colors().vmax) == pytest.approx((float(values.min()), float(values.max())))
    assert list(row.maps) == ["<b>ours</b>", "vim"]


def test_the_layer_changes_what_is_drawn(found):
    texts = {views.maps_html(found, ViewSettings(layer=layer)) for layer in range(3)}
    texts |= {views.maps_html(found, ViewSettings(layer=0, scale="log"))}
    texts |= {views.maps_html(found, ViewSettings(layer=0, resampling="bicubic"))}
    assert len(texts) == 5
    assert views.histogram_html(found, ViewSettings(layer=0)) != views.histogram_html(found, ViewSettings(layer=2))


def test_the_shared_files(found):
    picture = Image.open(io.BytesIO(views.share_png(found, ViewSettings(layer=1))))
    assert picture.format == "PNG" and min(picture.size) > 300
    record = json.loads(views.share_json(found, ViewSettings(layer=1)))
    assert [model["model"] for model in record["models"]] == ["<b>ours</b>", "vim"]
    links = Elements(views.share_html(found, ViewSettings(layer=1)))
    assert [value for name, value in links.attributes if name == "download"] == [
        "mambar-layer-1.png",
        "mambar-layer-1.json",
    ]


def test_a_class_named_by_bytes_that_are_no_text_is_shared():
    names = ("a", "b", "\udcff")
    analyzed = AnalyzedModel(
        name="x", model=VisionMamba(SMALL).eval(), preprocessing=Preprocessing(img_size=32), classes=names
    )
    explained = explain([analyzed], photographs("chelsea")["chelsea"], name="chelsea")
    assert "\\udcff" in views.share_json(explained, ViewSettings(layer=0)).decode()


def test_every_photograph_has_its_thumbnail():
    css = views.thumbnails_css("#p")
    count = len(photographs())
    assert css.count("url(data:image/jpeg;base64,") == count and f"nth-of-type({count})" in css
