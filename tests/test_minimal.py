"""The one-page model of examples/ computes what the package computes."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mambar.models import VisionMamba, VisionMambaConfig

PAGE = Path(__file__).parent.parent / "examples" / "mambar_minimal.py"

# The page's names that differ from the package's.
OTHER_NAMES = {
    "patch_embed.weight": "patch_embed.proj.weight",
    "patch_embed.bias": "patch_embed.proj.bias",
    "pos_embed": "pos_embed.weight",
    "registers": "registers.embedding",
    "register_position": "registers.position",
    "reduce.weight": "head.read_out.reduce.weight",
    "reduce_norm.weight": "head.read_out.norm.weight",
    "classifier.weight": "head.classifier.weight",
    "classifier.bias": "head.classifier.bias",
}


def the_page():
    spec = importlib.util.spec_from_file_location("mambar_minimal", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("num_registers", "reduce"), [(12, 4), (3, 1), (1, 1)])
def test_equal_to_the_package(num_registers, reduce):
    sizes = {
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_registers": num_registers,
        "register_reduction": reduce,
        "num_classes": 5,
    }
    page = the_page().MambaR(**sizes).double()
    package = VisionMamba(VisionMambaConfig(**sizes)).double().eval()
    page.load_state_dict({name: package.state_dict()[OTHER_NAMES.get(name, name)] for name in page.state_dict()})
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(page(images), package(images), rtol=1e-10, atol=1e-12)


def test_the_page_stays_a_page():
    assert len(PAGE.read_text("utf-8").splitlines()) <= 200
