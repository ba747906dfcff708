"""The path without gradients on a CPU: equal results, and every reason not to take it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("llvmlite")

from mambar.models import VisionMamba, VisionMambaConfig, vision_mamba
from mambar.nn.cpu_inference import inference_weights
from mambar.ops import use_backend

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_registers": 2, "num_classes": 5}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**fields):
    torch.manual_seed(0)
    return VisionMamba(VisionMambaConfig(**SIZES, d_state=4, **fields)).eval()


def is_fast(model):
    with torch.no_grad():
        return inference_weights(model.blocks, torch.randn(1, 7, 24)) is not None


def usual(model, monkeypatch):
    """The logits without the fast path."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(vision_mamba, "inference_weights", lambda *_: None)
        return model(IMAGES)


FIELDS = [{}, {"proj_bias": True}, {"conv_bias": False}, {"average_directions": False}, {"d_conv": 2, "expand": 3}]
FIELDS += [{"dt_rank": 3}, {"dt_rank": 20}]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_the_result_is_that_of_the_blocks(fields, no_gradients, monkeypatch):
    model = build(**fields)
    assert is_fast(model)
    with no_gradients():
        found = model(IMAGES)
    torch.testing.assert_close(found, usual(model, monkeypatch), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, model(IMAGES).detach(), rtol=1e-5, atol=1e-6)


def set_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def set_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def set_through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def load(model):
    model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})


def assign(model):
    model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()}, assign=True)


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IMAGES).square().sum().backward()
    optimizer.step()


def convert(model):
    model.to(torch.bfloat16).to(torch.float32)


def replace(model):
    scan = model.blocks[1].mixer.backward_scan
    scan.A_log = nn.Parameter(scan.A_log.detach() + 0.3)


@pytest.mark.parametrize("change", [set_in_place, set_data, set_through_data, load, assign, step, convert, replace])
def test_changed_weights_take_effect(change, monkeypatch):
    model = build()
    with torch.no_grad():
        before = model(IMAGES)
    change(model)
    with torch.no_grad():
        after = model(IMAGES)
    assert is_fast(model) and not torch.equal(before, after)
    torch.testing.assert_close(after, usual(model, monkeypatch), rtol=1e-5, atol=1e-6)


def test_a_call_leaves_nothing_in_the_model():
    model = build()
    keys, size, attributes = list(model.state_dict()), len(pickle.dumps(model)), [set(vars(m)) for m in model.modules()]
    with torch.no_grad():
        logits = model(IMAGES)
        copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
        assert all(torch.equal(each(IMAGES), logits) for each in copies)
    assert list(model.state_dict()) == keys and len(pickle.dumps(model)) == size
    assert [set(vars(module)) for module in model.modules()] == attributes


PARTS = ["mixer", "proj_drop", "drop_path"]
PARTS += [f"mixer.{name}" for name in ("in_proj", "out_proj", "forward_scan", "backward_scan")]
PARTS += [f"mixer.{way}_scan.{name}" for way in ("forward", "backward") for name in ("x_proj", "dt_proj")]


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_is_called(part):
    model, calls = build(), []
    handle = model.blocks[2].get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    assert not is_fast(model)
    with torch.no_grad():
        model(IMAGES)
    assert calls
    handle.remove()
    assert is_fast(model)


@pytest.mark.parametrize("part", PARTS)
def test_a_replaced_module_is_called(part):
    model = build()
    block = model.blocks[0]
    old = block.get_submodule(part)
    new = copy.deepcopy(old)
    new.__class__ = type("Changed", (type(old),), {})
    parent, _, name = part.rpartition(".")
    setattr(block.get_submodule(parent), name, new)
    assert not is_fast(model)
    new.__class__ = type(old)
    assert is_fast(model)
    new.forward = lambda *arguments: old(*arguments)
    assert not is_fast(model)


def test_only_plain_calls_without_gradients():
    model, x = build(), torch.randn(1, 7, 24)
    assert inference_weights(model.blocks, x) is None
    with torch.no_grad():
        assert inference_weights(model.blocks, x) is not None
        assert inference_weights(model.blocks, x.double()) is None
        assert inference_weights(model.blocks, x.bfloat16()) is None
        assert inference_weights(model.blocks, x[:, :0]) is None
        assert inference_weights(model.blocks, x.to("meta")) is None
        assert inference_weights(model.blocks, nn.Parameter(x)) is None
        with use_backend("reference"):
            assert inference_weights(model.blocks, x) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert inference_weights(model.blocks, x) is None
        with FlopCounterMode(display=False):
            assert inference_weights(model.blocks, x) is None
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert inference_weights(model.blocks, x) is None
        handle.remove()
        assert torch.func.vmap(lambda y: torch.tensor(inference_weights(model.blocks, y) is None))(x[None]).all()
        assert inference_weights(build(drop_path_rate=0.1).train().blocks, x) is None
        assert inference_weights(build(mixer="forward").blocks, x) is None
        assert inference_weights(build().double().blocks, x) is None
        model.blocks[0].mixer.compile(backend="eager")
        assert inference_weights(model.blocks, x) is None


def test_wrong_parameters_are_refused_by_name():
    model = build()
    scan = model.blocks[1].mixer.forward_scan
    scan.A_log = nn.Parameter(torch.zeros(5, 4))
    with torch.no_grad(), pytest.raises(ValueError, match=r"forward_params.A has d_inner 5"):
        model(IMAGES)
    scan.A_log = nn.Parameter(torch.zeros(4, 48).t())
    with torch.no_grad():
        assert not is_fast(model) and bool(model(IMAGES).isfinite().all())


def test_extreme_decays(monkeypatch):
    model = build()
    with torch.no_grad():
        model.blocks[0].mixer.forward_scan.A_log[0] = torch.tensor([-1e30, -90.0, 90.0, 1e30])
        model.blocks[1].mixer.forward_scan.A_log[0] = torch.tensor([-torch.inf, torch.inf, 0.0, 5.0])
        found = model(IMAGES)
    torch.testing.assert_close(found, usual(model, monkeypatch), rtol=1e-5, atol=1e-6)


def test_the_profiler_names_the_kernels():
    model = build()
    with torch.no_grad(), torch.profiler.profile() as profiler:
        model(IMAGES)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["bidirectional_mix.llvm_forward"] == 3 and counts["rms_norm.llvm_norm"] >= 4
