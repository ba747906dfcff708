"""transformers' common model tests for the classes of this package; see test_upstream_suites."""

import sys
import types
import unittest

import torch
from transformers.models.auto import modeling_auto

# Parts of the suite that its source distribution lacks: exporters, text generation, fields that only texts need.
LACKING = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}
for path, names in LACKING.items():
    for name in (path.partition(".")[0], path):
        sys.modules[f"tests.{name}"] = types.ModuleType(f"tests.{name}")
    vars(sys.modules[f"tests.{path}"]).update(names)

from tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402

from mambar.hub import huggingface as hf  # noqa: E402

NOT_APPLICABLE = {
    "test_model_get_set_embeddings": "for models of texts; test_input_embeddings is transformers' version for images",
}
# Which outputs a class has, by its name.
modeling_auto.MODEL_MAPPING_NAMES["mambar"] = "MambarModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["mambar"] = "MambarForImageClassification"


class Tester:
    """A configuration of two blocks and its inputs, as the mixins ask for them."""

    num_hidden_layers, hidden_size, seq_length = 2, 16, 16 + 3
    batch_size, is_training = 3, True

    def get_config(self):
        return hf.MambarConfig(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_registers=3, register_reduction=2, num_labels=5,
            d_state=4, out_features=["stage1", "stage2"],
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, 32, 32, generator=generator)}


class MambarModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (hf.MambarModel, hf.MambarForImageClassification)
    has_attentions = test_resize_embeddings = False
    locals().update(dict.fromkeys(NOT_APPLICABLE))

    def setUp(self):
        self.model_tester = Tester()

    def test_config(self):
        common = ["hidden_size", "num_hidden_layers", "image_size", "num_channels", "patch_size"]
        ConfigTester(
            self, hf.MambarConfig, has_text_modality=False, common_properties=common, embed_dim=32
        ).run_common_tests()

    def test_input_embeddings(self):
        for kind in self.all_model_classes:
            model = kind(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())


class MambarBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (hf.MambarBackbone,)
    config_class = hf.MambarConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = Tester()
