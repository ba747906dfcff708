"""Models that replay their forward pass from CUDA graphs: the same bits, whatever changes between two calls."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mambar
from mambar.nn.cuda_graph import GraphedCalls, first_hook


def small(**config):
    torch.manual_seed(0)
    fields = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_registers": 2, "register_reduction": 2}
    return mambar.create_model("mambar_tiny_patch16_224", num_classes=5, **{**fields, **config}).eval()


def images(batch=2, side=32, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_on_the_cpu_nothing_changes():
    plain, model = small(), mambar.use_cuda_graphs(small())
    with torch.no_grad():
        assert torch.equal(plain(images()), model(images()))
        assert torch.equal(plain.tokens(images(), [1])[0].patches, model.tokens(images(), [1])[0].patches)
    assert plain.state_dict().keys() == model.state_dict().keys()
    model.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_a_copy_and_a_pickle_are_independent():
    model = mambar.use_cuda_graphs(small())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            expected = model(images())
            for parameter in other.parameters():
                parameter.zero_()
            assert torch.equal(model(images()), expected) and not other(images()).any()


def test_the_first_hook_is_named():
    model = small()
    assert first_hook(model) is None
    handle = model.blocks[1].norm.register_forward_pre_hook(lambda module, inputs: None)
    assert first_hook(model) == "blocks.1.norm"
    handle.remove()
    model.blocks[0].mixer.out_proj.weight.register_hook(lambda gradient: gradient)
    assert first_hook(model) == "blocks.0.mixer.out_proj.weight"


@pytest.fixture
def pair():
    """A plain model and one with graphs, on the GPU and with the same weights."""
    return small().cuda(), mambar.use_cuda_graphs(small().cuda())


def graphs_of(model):
    return list(vars(model)["forward"]._graphs._graphs.values())


def assert_equal_calls(plain, model, times=4, **given):
    for seed in range(times):
        batch = images(**given, seed=seed).cuda()
        assert torch.equal(plain(batch), model(batch))


@pytest.mark.gpu
@pytest.mark.parametrize("grad_free", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_bits_at_every_shape(pair, grad_free, autocast):
    with grad_free(), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for side, batch in ((32, 2), (48, 1), (32, 2), (40, 3)):
            assert_equal_calls(*pair, side=side, batch=batch)
    assert len(graphs_of(pair[1])) == 3
    with torch.no_grad():
        assert_equal_calls(*pair)


@pytest.mark.gpu
def test_tokens_and_results_that_are_kept(pair):
    plain, model = pair
    with torch.no_grad():
        kept = []
        for seed in range(5):
            batch = images(seed=seed).cuda()
            kept.append((plain.tokens(batch, [0, -1]), model.tokens(batch, [0, -1])))
            assert len(model.tokens(batch, tensor="mixer")) == 3
        for expected, found in kept:
            for one, two in zip(expected, found, strict=True):
                assert torch.equal(one.patches, two.patches) and torch.equal(one.registers, two.registers)
                assert one.grid == two.grid
    assert len(graphs_of(model)) == 2


@pytest.mark.gpu
def test_weights_may_change(pair):
    plain, model = pair

    def change(each, how):
        torch.manual_seed(1)
        weight = each.blocks[1].mixer.out_proj.weight
        if how == "in place":
            weight.normal_()
        elif how == "data":
            weight.data = torch.randn_like(weight)
        elif how == "parameter":
            each.blocks[1].mixer.out_proj.weight = nn.Parameter(torch.randn_like(weight))
        elif how == "module":
            each.blocks[1].mixer.out_proj = nn.Linear(weight.shape[1], weight.shape[0], device="cuda")
        else:
            each.load_state_dict({name: tensor + 0.01 for name, tensor in each.state_dict().items()})

    with torch.no_grad():
        assert_equal_calls(plain, model)
        for how in ("in place", "data", "parameter", "module", "load_state_dict"):
            change(plain, how)
            change(model, how)
            assert_equal_calls(plain, model)


@pytest.mark.gpu
def test_hooks_training_and_gradients_are_honoured(pair):
    plain, model = pair
    with torch.no_grad():
        assert_equal_calls(plain, model)
        seen = []
        handle = model.blocks[2].register_forward_hook(lambda module, inputs, output: seen.append(output.norm().item()))
        assert_equal_calls(plain, model)
        assert len(seen) == 4
        handle.remove()
        assert_equal_calls(plain, model)
    for each in pair:
        each.train()(images().cuda()).square().sum().backward()
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None) and (one.grad is None or torch.equal(one.grad, two.grad))


@pytest.mark.gpu
def test_the_number_of_graphs_is_bounded():
    plain, model = small().cuda(), mambar.use_cuda_graphs(small().cuda(), max_graphs=2)
    with torch.no_grad():
        for side in (16, 24, 32, 40, 16):
            assert_equal_calls(plain, model, side=side)
            assert len(graphs_of(model)) <= 2


@pytest.mark.gpu
def test_another_backend_is_another_graph(pair):
    with torch.no_grad():
        assert_equal_calls(*pair)
        with mambar.use_backend("reference"):
            assert_equal_calls(*pair)
    assert len(graphs_of(pair[1])) == 2


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_without_a_graph(caplog):
    def reads_a_value(tensors):
        return tensors["x"] * float(tensors["x"].sum())

    torch.manual_seed(0)
    expected = torch.rand(4, device="cuda")
    torch.manual_seed(0)
    call, x = GraphedCalls(), torch.arange(4.0, device="cuda")
    for _ in range(5):
        assert torch.equal(call(reads_a_value, {"x": x}), x * 6)
    assert len(caplog.records) == 1 and "No CUDA graph" in caplog.text
    assert torch.equal(torch.rand(4, device="cuda"), expected), "the random generator goes on where it was"
    assert torch.rand(4, device="cuda").isfinite().all()
