"""The whole model against the released code's numbers, and timm's contract."""

import pytest
import torch
from timm.models import group_parameters

import golden_cases
from mambar.errors import InputError
from mambar.hub.convert import convert_checkpoint, detect_source, infer_config, to_official
from mambar.models import VisionMamba, VisionMambaConfig, variant
from mambar.models.vision_mamba import drop_path_rates
from mambar.nn.block import DropPath
from mambar.nn.heads import HEADS
from mambar.ops import use_backend

SEEN = {torch.float64: 1e-10, torch.float32: 2e-5}
GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-4}
CASES = golden_cases.cases("mambar_model") + golden_cases.cases("vim_model") + golden_cases.cases("drop_path")
SMALL = VisionMambaConfig(
    img_size=32,
    patch_size=8,
    embed_dim=32,
    depth=3,
    num_registers=3,
    register_reduction=2,
    num_classes=5,
    drop_path_rate=0.2,
)


def golden_model(case, dtype):
    """The model of a golden case, its released state dict and where that came from."""
    released = {name.removeprefix("param/"): case[name] for name in case.tensors if name.startswith("param/")}
    height, width = case.config["img_size"]
    config = infer_config(released, img_size=(height, width)).replace(
        drop_path_rate=case.config.get("drop_path_rate", 0.0), norm_eps=case.config["norm_eps"]
    )
    model = VisionMamba(config).to(dtype).eval()
    source = detect_source(released)
    model.load_state_dict(convert_checkpoint(released, source=source, config=config))
    return model, source


def fix_drop_path(model, case):
    """Puts the stored masks and rates in place of drawn ones."""
    model.train()
    for block, mask, rate in zip(model.blocks, case["keep_mask"], case["drop_rates"].tolist(), strict=True):
        block.drop_path = DropPath(rate)
        block.drop_path.keep = lambda branch, mask=mask: mask[:, None, None]


@pytest.mark.parametrize("backend", ["reference", "chunked", "doubling", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden_model(case, dtype, backend):
    model, source = golden_model(case, dtype)
    assert sum(p.numel() for p in model.parameters()) == sum(
        case[name].numel() for name in case.tensors if name.startswith("param/")
    )
    if case.kind == "drop_path":
        fix_drop_path(model, case)
    images = case["input"].to(dtype).requires_grad_()
    with use_backend(backend):
        logits = model(images)
        (logits * case["loss_weight"].to(dtype)).sum().backward()
    golden_cases.assert_near(logits, case["logits"], SEEN[dtype])
    golden_cases.assert_near(images.grad, case["grad_input"], GRADIENT[dtype])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in to_official(gradients, source=source, config=model.config).items():
        golden_cases.assert_near(gradient, case[f"grad/{name}"], GRADIENT[dtype])


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "drop_path"], ids=str)
def test_golden_insides(case):
    """Residual stream, mixer outputs, final tokens and features, layer by layer."""
    model, _ = golden_model(case, torch.float64)
    images = case["input"].double()
    with torch.no_grad():
        stream, grid = model.embed(images)
        golden_cases.assert_near(stream, case["residual"][0], 1e-10)
        for tensor, expected in (
            ("residual", case["residual"][1:]),
            ("mixer", None),
            ("normed", case["tokens_norm_f"][None]),
        ):
            layers = [model.num_layers - 1] if tensor == "normed" else None
            found = model.tokens(images, layers, tensor=tensor)
            for index, tokens in enumerate(found):
                assert tokens.grid == grid
                sequence = rejoin(model, tokens)
                norms = sequence.norm(dim=-1)
                if tensor == "mixer":
                    golden_cases.assert_near(norms, case["mixer_out_norm"][index], 1e-10)
                    continue
                golden_cases.assert_near(sequence, expected[index], 1e-10)
                known = case["residual_norm"][index + 1] if tensor == "residual" else case["tokens_norm"]
                golden_cases.assert_near(norms, known, 1e-10)
        tokens = model.forward_features(images)
        golden_cases.assert_near(tokens, case["tokens_norm_f"], 1e-10)
        golden_cases.assert_near(model.forward_head(tokens, pre_logits=True), case["features"], 1e-10)


def rejoin(model, tokens):
    """Patches and registers back in sequence order."""
    rows, cols = tokens.grid
    places = model.registers.positions(rows * cols)
    others = [index for index in range(rows * cols + len(places)) if index not in places]
    sequence = tokens.patches.new_empty(tokens.patches.shape[0], len(places) + len(others), tokens.patches.shape[2])
    sequence[:, others] = tokens.patches
    sequence[:, list(places)] = tokens.registers
    return sequence


def test_drop_path_rates_rise_linearly():
    rates = drop_path_rates(variant("mambar_small_patch16_224").replace(drop_path_rate=0.1))
    stored = golden_cases.manifest()["models"]["mambar_small_patch16_224"]["drop_path"]
    # The released code reads a block's rate where the next block starts, and the last one at the final norm.
    expected = [*stored["on_block_input"][1:], stored["on_final"]]
    assert rates == pytest.approx(expected, abs=1e-7)
    assert drop_path_rates(SMALL.replace(depth=1)) == [0.0]


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (9, 70)])
def test_any_size_that_holds_a_patch(size):
    model = VisionMamba(SMALL).eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


def test_an_image_of_wrong_shape_is_refused():
    model = VisionMamba(SMALL)
    with pytest.raises(InputError, match=r"\(batch, 3, height, width\)"):
        model(torch.randn(1, 1, 32, 32))
    with pytest.raises(InputError, match="holds no patch"):
        model(torch.randn(1, 3, 7, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(dtype):
    """float32 takes the kernels where there are some, float64 the plain loop."""
    model = VisionMamba(SMALL.replace(drop_path_rate=0.0)).to(dtype).train()
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def answer_and_gradients(device, dtype, *, watch, train):
    """Of a model whose blocks and norms have hooks or not; also the observed calls."""
    torch.manual_seed(0)
    model = VisionMamba(SMALL).to(device).train(train)
    images = torch.randn(2, 3, 32, 32).to(device)
    calls = []
    for block in model.blocks if watch else ():
        block.register_forward_hook(lambda *given: calls.append(given[-1]))
        block.norm.register_forward_pre_hook(lambda *given: calls.append(given[-1][0]))
    torch.manual_seed(1)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        answer = model(images)
    answer.float().square().sum().backward()
    return [answer, *(p.grad for p in model.parameters())], calls


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_hooks_do_not_change_the_numbers(device, dtype, train):
    """Blocks without hooks are not called: their sums are computed in the norm of the next.

    On a CPU to the bit; a GPU's kernel that adds on the way sums its squares in another order.
    """
    plain, nothing = answer_and_gradients(device, dtype, watch=False, train=train)
    hooked, seen = answer_and_gradients(device, dtype, watch=True, train=train)
    assert nothing == [] and len(seen) == 2 * SMALL.depth
    assert all(torch.equal(seen[2 * index + 1], seen[2 * index + 2]) for index in range(SMALL.depth - 1))
    for one, other in zip(plain, hooked, strict=True):
        if device == "cpu":
            assert torch.equal(one, other)
        else:
            apart = (one - other).double().norm() / other.double().norm().clamp_min(1e-30)
            assert apart <= (1e-5 if dtype == torch.float32 else 2e-2)


def calls_by_hook_on_all(model, calls):
    return torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: calls.append(module) if module in set(model.blocks) else None
    )


def calls_by_compile_in_place(model, calls):
    for block in model.blocks:
        block.compile(backend=lambda graph, given: lambda *values: calls.append(graph) or graph(*values))


def calls_by_another_forward(model, calls):
    for block in model.blocks:
        own = block.forward
        block.forward = lambda *given, own=own: calls.append(own) or own(*given)


def calls_by_another_norm(model, calls):
    for block in model.blocks:
        own = block.norm
        block.norm = torch.nn.Sequential(own)
        own.register_forward_hook(lambda *given: calls.append(given))


@pytest.mark.parametrize(
    "watch", [calls_by_hook_on_all, calls_by_compile_in_place, calls_by_another_forward, calls_by_another_norm]
)
def test_hooked_or_replaced_blocks_are_called(watch):
    model = VisionMamba(SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    plain, calls = model(images), []
    handle = watch(model, calls)
    try:
        torch.testing.assert_close(model(images), plain)
    finally:
        if handle is not None:
            handle.remove()
    # The hook of `make shapes` cuts a block's graph into several.
    assert len(calls) >= SMALL.depth if watch is calls_by_compile_in_place else len(calls) == SMALL.depth


def test_every_parameter_gets_a_gradient():
    for head in HEADS:
        model = VisionMamba(SMALL.replace(head=head, drop_path_rate=0.0))
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def grad_cam(model, images, layer, index):
    """Grad-CAM by hand: the mean gradient of each channel weighs the map of the patch tokens of `layer`."""
    kept = []
    hook = layer.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, index].sum(), kept)
    grid = model.patch_embed.grid(images)
    tokens, slope = (model.registers.split(each, grid).map() for each in (kept[0], gradient))
    return (tokens * slope.mean((2, 3), keepdim=True)).sum(1).relu(), slope


def test_class_activation_maps_take_the_norm_of_the_last_block():
    """The head reads registers, so patch tokens after the final norm have no gradient."""
    torch.manual_seed(0)
    model, images = VisionMamba(SMALL).double(), torch.randn(2, 3, 40, 48, dtype=torch.float64)
    heat, slope = grad_cam(model, images, model.blocks[-1].norm, index=0)
    assert heat.shape == (2, 5, 6) and heat.max() > 0 and slope.abs().amin((0, 1)).min() > 0
    assert not torch.equal(heat, grad_cam(model, images, model.blocks[-1].norm, index=1)[0])
    _, slope = grad_cam(model, images, model.norm, index=0)
    assert not slope.any()


def test_forward_intermediates_is_timms():
    model = VisionMamba(SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    final, maps = model.forward_intermediates(images, indices=[2, 0])
    assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(maps[0], model.tokens(images, [0])[0].map())
    last = model.forward_intermediates(
        images, indices=1, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    patches, registers = last[0]
    assert patches.shape == (2, 16, 32) and registers.shape == (2, 3, 32)
    assert torch.equal(registers, model.tokens(images, [-1], tensor="normed")[0].registers)
    named = model.forward_intermediates(images, indices=[0], stop_early=True, output_dict=True)
    assert set(named) == {"image_features", "image_intermediates"}
    with pytest.raises(InputError, match="layers 0 to 2"):
        model.forward_intermediates(images, indices=[3])


def test_reset_classifier():
    model = VisionMamba(SMALL).eval()
    model.reset_classifier(11)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 11)
    assert model.num_classes == model.config.num_classes == 11
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, model.head_hidden_size)
    model.reset_classifier(4, global_pool="avg")
    assert model.head_hidden_size == model.num_features == 32 and model.get_classifier().out_features == 4


def test_set_input_size_resizes_the_table():
    model = VisionMamba(SMALL).eval()
    images = torch.randn(1, 3, 48, 40)
    before = model(images)
    model.set_input_size((48, 40))
    assert model.pos_embed.weight.shape == (1, 30, 32)
    torch.testing.assert_close(model(images), before)


def test_groups_and_decay():
    model = VisionMamba(SMALL)
    names = [name for name, _ in model.named_parameters()]
    assert model.no_weight_decay() <= set(names)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == set(names) and set(layers.values()) == {0, 1, 2, 3, 4}
    # timm's rule: the final norm learns like the last block.
    assert layers["blocks.1.norm.weight"] == 2 and layers["norm.weight"] == 3


def test_half_precision_keeps_a_float32_stream():
    model = VisionMamba(SMALL).to(torch.bfloat16).eval()
    stream, _ = model.embed(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert stream.dtype == torch.float32
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))).all()


@pytest.mark.slow
def test_full_graph_compile_and_export():
    model = VisionMamba(SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), expected, rtol=1e-4, atol=1e-5)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-5)
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)
