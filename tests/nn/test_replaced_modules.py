"""Replaced, hooked, quantized and parametrized submodules of a mixer take effect."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import mixer as mixers
from mambar.nn.mixer import MIXERS, MambaMixer
from mambar.nn.placement import register_positions

SIZES = {"d_state": 4, "d_conv": 3, "expand": 2, "dt_rank": 2}
CONFIG = VisionMambaConfig(img_size=16, patch_size=4, embed_dim=16, depth=2, num_registers=2, num_classes=3, d_state=4)
GRID, POSITIONS = (3, 2), register_positions("evenly", 6, 2)
LINEARS = ("in_proj", "x_proj", "dt_proj", "out_proj")


def mixer_and_tokens(name="bidirectional", **fields):
    torch.manual_seed(0)
    mixer = MIXERS[name](8, **{**SIZES, **fields}).double()
    mixer.init_weights(depth=2)
    return mixer, torch.randn(2, 8, 8, dtype=torch.float64)


def call(mixer, tokens):
    return mixer(tokens, GRID, POSITIONS)


@pytest.fixture
def fused_calls(monkeypatch):
    """The number of calls of the fused op."""
    calls = []
    fused = mixers.ops.bidirectional_mix
    monkeypatch.setattr(mixers.ops, "bidirectional_mix", lambda *a, **k: calls.append(1) or fused(*a, **k))
    return calls


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("name", ["bidirectional", "cross_scan"])
def test_both_paths_are_equal(name, average, fused_calls):
    mixer, tokens = mixer_and_tokens(name, average_directions=average, proj_bias=True)
    found = []
    for composed in (False, True):
        mixer.zero_grad()
        if composed:
            fused_calls.clear()
            for module in list(mixer.modules()):
                module.register_forward_hook(lambda *_: None)
        output = call(mixer, tokens)
        output.square().sum().backward()
        found.append([output.detach(), *(p.grad.clone() for p in mixer.parameters())])
        assert bool(fused_calls) == (not composed)
    for fused, composed in zip(*found, strict=True):
        torch.testing.assert_close(composed, fused, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MIXERS)
def test_hooks_on_every_submodule_run(name):
    mixer, tokens = mixer_and_tokens(name)
    before, seen = call(mixer, tokens), []
    modules = [each for each in mixer.modules() if each is not mixer]
    for each in modules:
        each.register_forward_hook(lambda module, *_: seen.append(module))
        each.register_forward_pre_hook(lambda module, _: seen.append(module))
        each.register_full_backward_hook(lambda module, *_: seen.append(module))
    output = call(mixer, tokens.requires_grad_())
    torch.testing.assert_close(output, before)
    output.sum().backward()
    assert all(seen.count(module) == 3 for module in modules)


def test_a_hook_for_all_modules_runs():
    mixer, tokens = mixer_and_tokens()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        call(mixer, tokens)
    finally:
        handle.remove()
    assert set(seen) == set(mixer.modules())


def test_a_forward_method_of_the_instance_is_called():
    mixer, tokens = mixer_and_tokens()
    before = call(mixer, tokens)
    mixer.forward_scan.x_proj.forward = lambda u: torch.zeros(*u.shape[:-1], 10, dtype=u.dtype)
    assert not torch.allclose(call(mixer, tokens), before)


@pytest.mark.parametrize("linear", ["x_proj", "dt_proj"])
def test_a_replaced_projection_is_called(linear):
    mixer, tokens = mixer_and_tokens()
    before = call(mixer, tokens)
    own = getattr(mixer.forward_scan, linear)
    setattr(mixer.forward_scan, linear, nn.Sequential(own, nn.Identity()))
    torch.testing.assert_close(call(mixer, tokens), before, rtol=1e-10, atol=1e-12)
    setattr(mixer.forward_scan, linear, nn.Sequential(own, nn.Dropout(1.0)))
    assert not torch.allclose(call(mixer, tokens), before)


def test_a_bias_of_x_proj_is_added():
    mixer, tokens = mixer_and_tokens()
    before = call(mixer, tokens)
    mixer.forward_scan.x_proj.bias = nn.Parameter(torch.ones(10, dtype=torch.float64))
    assert not torch.allclose(call(mixer, tokens), before)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["x_proj.weight", "dt_proj.weight", "dt_proj.bias", "conv_weight", "A_log", "D"])
def test_parametrizations_take_effect(name):
    mixer, tokens = mixer_and_tokens()
    doubled = copy.deepcopy(mixer)
    with torch.no_grad():
        doubled.backward_scan.get_parameter(name).mul_(2)
    path, _, tensor = name.rpartition(".")
    parametrize.register_parametrization(mixer.backward_scan.get_submodule(path), tensor, Twice())
    output = call(mixer, tokens)
    torch.testing.assert_close(output, call(doubled, tokens), rtol=1e-10, atol=1e-12)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


def test_pruned_and_weight_normalized_projections():
    mixer, tokens = mixer_and_tokens()
    before = call(mixer, tokens)
    prune.random_unstructured(mixer.forward_scan.x_proj, "weight", amount=0.5)
    prune.random_unstructured(mixer.forward_scan, "conv_weight", amount=0.5)
    pruned = call(mixer, tokens)
    assert not torch.allclose(pruned, before)
    # The weight that the pre-hook computes follows the original one.
    with torch.no_grad():
        mixer.forward_scan.x_proj.weight_orig.mul_(3)
    assert not torch.allclose(call(mixer, tokens), pruned)
    prune.remove(mixer.forward_scan.x_proj, "weight")
    prune.remove(mixer.forward_scan, "conv_weight")
    torch.nn.utils.parametrizations.weight_norm(mixer.backward_scan.dt_proj)
    call(mixer, tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


def test_lora_adapters_on_all_projections(need_package):
    need_package("peft")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = VisionMamba(CONFIG).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEARS), init_lora_weights=False)).double()
    output = adapted(images)
    assert not torch.allclose(output, before)
    output.square().sum().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * 2 * 6  # A and B, two blocks, two projections around and two in each direction
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    merged = adapted.merge_and_unload()
    assert isinstance(merged.blocks[0].mixer.forward_scan.x_proj, nn.Linear)
    torch.testing.assert_close(merged(images), output, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization():
    from torch.ao.quantization import quantize_dynamic

    torch.manual_seed(0)
    model = VisionMamba(CONFIG).eval()
    images = torch.randn(2, 3, 16, 16)
    quantized = quantize_dynamic(model, {nn.Linear})
    assert type(quantized.blocks[0].mixer.forward_scan.x_proj) is not nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(quantized(images), model(images), rtol=0.2, atol=0.05)


def test_torchao_weight_only_int8(need_package):
    need_package("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    model = VisionMamba(CONFIG.replace(embed_dim=32)).eval()  # torchao takes no layer of one input channel
    images = torch.randn(2, 3, 16, 16)
    quantized = copy.deepcopy(model)
    quantize_(quantized, Int8WeightOnlyConfig())
    assert type(quantized.blocks[0].mixer.forward_scan.x_proj.weight) is not nn.Parameter
    with torch.no_grad():
        torch.testing.assert_close(quantized(images), model(images), rtol=0.2, atol=0.05)


def test_the_plain_mixer_uses_the_fused_op(fused_calls):
    mixer = MambaMixer(8, **SIZES)
    mixer(torch.randn(1, 4, 8))
    assert len(fused_calls) == 1
    # Hooks around the mixer's own projections do not need the composed path: these are always called.
    mixer.in_proj.register_forward_hook(lambda *_: None)
    mixer(torch.randn(1, 4, 8))
    assert len(fused_calls) == 2
