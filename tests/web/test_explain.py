"""What the page computes: the analysis of `mambar.analysis`, layer by layer, for one image."""

import json

import pytest
import torch

from mambar.analysis import register_norms, token_norms
from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.measure.feature_maps import feature_maps
from mambar.analysis.measure.register_maps import register_maps
from mambar.analysis.options import AnalysisOptions
from mambar.data import Preprocessing
from mambar.data.synthetic.photographs import photographs
from mambar.errors import InputError
from mambar.evaluation.prediction import predict_image
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.web.explain import METRIC, explain

SMALL = VisionMambaConfig(
    img_size=32, patch_size=8, embed_dim=16, depth=4, num_registers=3, register_reduction=2, num_classes=5, d_state=4
)


def analyzed(name="ours", **fields):
    torch.manual_seed(0)
    model = VisionMamba(SMALL.replace(**fields)).eval()
    model.preprocessing = Preprocessing(img_size=32, crop_pct=0.9)
    return AnalyzedModel(name=name, model=model, preprocessing=model.preprocessing, classes=tuple("abcde"))


@pytest.fixture
def photograph():
    return photographs("chelsea")["chelsea"]


def test_every_layer_is_the_analysis_of_it(photograph):
    given = analyzed()
    view = explain([given], photograph, name="chelsea").views[0]
    images = given.preprocess(photograph)[None]
    assert torch.equal(view.norm_maps(), token_norms(given.model, images)[:, 0])
    assert torch.equal(view.feature_maps, feature_maps(given.model, images, metric=METRIC)[:, 0])
    assert torch.equal(view.register_maps, register_maps(given.model, images, metric=METRIC)[:, 0])
    norms = register_norms(given.model, images)[:, 0]
    assert [own.maximum for own in view.norms.registers] == pytest.approx(norms.amax(1).tolist())
    assert len({float(layer.mean()) for layer in view.feature_maps}) == 4


def test_classes_are_those_of_predict(photograph):
    given = analyzed()
    view = explain([given], photograph, name="chelsea", top=3).views[0]
    given.model.classes = given.classes
    assert view.predictions == predict_image(given.model, photograph, top=3)
    assert explain([analyzed(num_classes=0)], photograph, name="x").views[0].predictions == []
    assert view.seconds["classes"] > 0 and view.seconds["maps"] > 0


def test_a_model_without_registers_has_no_register_maps(photograph):
    view = explain([analyzed(num_registers=0, head="avg", register_reduction=1)], photograph, name="x").views[0]
    assert view.register_maps is None and view.vector == "avg"


def test_layers_of_unequal_models_meet_at_the_same_depth(photograph):
    found = explain([analyzed(depth=4), analyzed("vim", depth=2)], photograph, name="x")
    second = found.views[1]
    assert [found.layer(second, layer) for layer in range(4)] == [0, 0, 1, 1]
    assert [found.layer(found.views[0], layer) for layer in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="layers 0 to 3"):
        found.layer(second, 4)


def test_the_record_is_json_and_holds_the_maps_of_its_layer(photograph):
    found = explain([analyzed()], photograph, name="chelsea")
    record = json.loads(json.dumps(found.to_dict(1), allow_nan=False))
    model = record["models"][0]
    assert record["format_version"] == 2 and model["layer"] == 1 and len(model["norms"]) == 4
    torch.testing.assert_close(torch.tensor(model["norm_map"]), found.views[0].norm_maps()[1], rtol=1e-5, atol=0)
    assert len(model["register_maps"]) == 3 and len(model["classes"]) == 5


def test_what_is_not_finite_is_null_in_the_record(photograph):
    given = analyzed()
    with torch.no_grad():
        given.model.blocks[2].mixer.out_proj.weight.fill_(float("nan"))
    text = json.dumps(explain([given], photograph, name="x").to_dict(3), allow_nan=False)
    assert json.loads(text)["models"][0]["norm_map"][0][0] is None


def test_page_and_report_have_one_default_metric():
    assert AnalysisOptions().metric == METRIC == "cosine"
