import pytest
import torch

from mambar.analysis.measure.activations import capture_activations, eval_without_gradients
from mambar.errors import InputError
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.models.timm_vit import create_timm_vit


def vision_mamba(**fields):
    torch.manual_seed(0)
    config = VisionMambaConfig(img_size=32, patch_size=8, embed_dim=16, depth=3, num_classes=3, **fields)
    model = VisionMamba(config).eval()
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2.0)
    return model, model.patch_embed


def timm_vit(name):
    torch.manual_seed(0)
    model = create_timm_vit(name, pretrained=False, img_size=32)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2.0)
    return model, model.model.patch_embed


MODELS = {
    "registers": lambda: vision_mamba(num_registers=4, register_reduction=2),
    "no registers": lambda: vision_mamba(num_registers=0, head="avg"),
    "timm": lambda: timm_vit("deit_tiny_patch16_224"),
}


@pytest.fixture(params=MODELS)
def model_and_calls(request):
    model, patch_embed = MODELS[request.param]()
    calls = []
    patch_embed.register_forward_hook(lambda *_: calls.append(1))
    return model, calls


def test_residual_and_normed_tokens_of_one_pass_equal_those_of_two(model_and_calls):
    model, calls = model_and_calls
    images = torch.rand(2, 3, 32, 32)
    found = capture_activations(model, images, {"residual": None, "normed": [-1, 0]})
    assert len(calls) == 1 and len(found["residual"]) == model.num_layers
    with torch.no_grad():
        expected = {"residual": model.tokens(images), "normed": model.tokens(images, [-1, 0], tensor="normed")}
    for tensor, layers in expected.items():
        for ours, theirs in zip(found[tensor], layers, strict=True):
            assert torch.equal(ours.patches, theirs.patches) and torch.equal(ours.registers, theirs.registers)
            assert ours.grid == theirs.grid


def test_mixer_outputs_take_a_second_pass(model_and_calls):
    model, calls = model_and_calls
    images = torch.rand(1, 3, 32, 32)
    found = capture_activations(model, images, {"normed": [-1], "residual": None, "mixer": [1]})
    assert len(calls) == 2
    with torch.no_grad():
        assert torch.equal(found["mixer"][0].patches, model.tokens(images, [1], tensor="mixer")[0].patches)


def test_models_without_a_known_final_norm_are_supported(fake_model):
    found = capture_activations(fake_model, torch.ones(1, 3, 4, 4), {"residual": None, "normed": [-1]})
    assert torch.allclose(found["residual"][2].patches, 10 * found["normed"][0].patches)


def test_missing_layers_are_refused(fake_model):
    with pytest.raises(InputError, match="layer 3 does not exist"):
        capture_activations(fake_model, torch.ones(1, 3, 4, 4), {"residual": [3]})


def test_eval_mode_restores_training_mode(fake_model):
    fake_model.train()
    with eval_without_gradients(fake_model):
        assert not fake_model.training and not torch.is_grad_enabled()
    assert fake_model.training and torch.is_grad_enabled()
