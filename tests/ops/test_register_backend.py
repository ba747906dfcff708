"""A backend that a user registers runs in the op, in the model, and in place of a fused op made of it."""

import pytest
import torch

from mambar.errors import BackendUnavailable, InputError
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.ops import (
    Backend,
    ScanDirection,
    available_backends,
    bidirectional_mix,
    causal_conv1d,
    register_backend,
    rms_norm,
    selective_scan,
    unregister_backend,
    use_backend,
)
from mambar.ops.dispatch import resolve
from op_inputs import TOLERANCES, relative_error, scan_inputs, to_double, with_gradients, without_shape_hook

DTYPES = tuple(TOLERANCES)


def scan_of_plain_torch(calls):
    """A scan backend of about forty lines, written without anything of mambar."""

    def states(u, delta, A, B, delta_bias, softplus, start, reverse):
        dt = delta.to(A.dtype) if delta_bias is None else delta + delta_bias
        dt = torch.nn.functional.softplus(dt) if softplus else dt
        h = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype) if start is None else start
        found = []
        for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt * u)[:, t, :, None] * B[:, t, None]
            found.append(h)
        return torch.stack(found[::-1] if reverse else found, 1), h

    def scan(u, delta, A, B, C, D, z, delta_bias, start, *, delta_softplus, reverse):
        h, last = states(u, delta, A, B, delta_bias, delta_softplus, start, reverse)
        y = (h * C[:, :, None]).sum(-1)
        y = y if D is None else y + D * u
        y = y if z is None else y * torch.nn.functional.silu(z.to(A.dtype))
        return y.to(u.dtype), last

    class Scan:
        @staticmethod
        def empty_saved(*tensors):
            return []

        @staticmethod
        def forward(*tensors, delta_softplus, reverse, for_backward):
            calls.append("forward")
            y, last = scan(*tensors, delta_softplus=delta_softplus, reverse=reverse)
            return y.contiguous(), last.clone(), []

        @staticmethod
        def backward(dy, dstate, *tensors, delta_softplus, reverse):
            calls.append("backward")
            *tensors, _ = tensors
            with torch.enable_grad():
                leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
                y, last = scan(*leaves, delta_softplus=delta_softplus, reverse=reverse)
                given = [leaf for leaf in leaves if leaf is not None]
                dstate = torch.zeros_like(last) if dstate is None else dstate
                found = iter(torch.autograd.grad((y, last), given, (dy, dstate), allow_unused=True))
            return tuple(None if leaf is None else next(found).contiguous() for leaf in leaves)

        @staticmethod
        def selective_scan(*tensors, **options):
            calls.append("plain")
            return scan(*tensors, **options)

    return Scan


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = VisionMambaConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, d_state=4, num_registers=2, num_classes=3
    )
    return VisionMamba(config)


def model_gradients(model, dtype=torch.float32):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loss = model.to(dtype)(images.to(dtype)).square().sum()
    return loss, torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("kernel", [True, False])
def test_the_model_calls_a_registered_scan_under_auto(model, kernel):
    calls = []
    row = Backend(name="mine", module=scan_of_plain_torch(calls), dtypes=DTYPES, kernel=kernel)
    with register_backend("selective_scan", row):
        loss, gradients = model_gradients(model)
    # Two directions in two blocks.
    assert calls == (["forward"] * 4 + ["backward"] * 4 if kernel else ["plain"] * 4)
    model_gradients(model)
    assert len(calls) == (8 if kernel else 4)
    with use_backend("reference"):
        right, expected = model_gradients(model, torch.float64)
    assert relative_error(loss, right) <= 1e-5
    largest = max(gradient.abs().max() for gradient in expected)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-6 * largest


def test_the_op_calls_it_by_name_and_by_choice():
    calls = []
    tensors = {name: t for name, t in scan_inputs().items() if name != "initial_state"}
    expected = with_gradients(lambda **t: selective_scan(**t, backend="reference"), to_double(tensors))
    with register_backend(
        "selective_scan", Backend(name="mine", module=scan_of_plain_torch(calls), dtypes=DTYPES, kernel=True)
    ):
        assert available_backends("selective_scan")[0].name == "mine"
        for backend in ("auto", "mine"):
            found = with_gradients(lambda b=backend, **t: selective_scan(**t, backend=b), tensors)
            assert all(relative_error(found[name], right) <= 2e-5 for name, right in expected.items())
        with use_backend("mine"):
            selective_scan(**tensors)
            with use_backend("reference"):
                selective_scan(**tensors)
    assert len(calls) == 5
    with pytest.raises(InputError, match="backend='mine' is not one of selective_scan"):
        selective_scan(**tensors, backend="mine")


def test_a_fused_backend_is_skipped_only_if_a_registered_one_would_run(stub_kernels):
    def chosen(dtype=torch.float32):
        return resolve("bidirectional_mix", "auto", device=torch.device("cpu"), dtype=dtype, otherwise="composed")

    usual = chosen()
    for op, module in (("selective_scan", scan_of_plain_torch([])), ("causal_conv1d", "stub_causal_conv1d")):
        with register_backend(op, Backend(name="mine", module=module, dtypes=(torch.float32,), kernel=True)):
            assert chosen() == "composed" and chosen(torch.bfloat16) == resolve(
                "bidirectional_mix", "auto", device=torch.device("cpu"), dtype=torch.bfloat16
            )
            fused = Backend(name="fused", module="stub_bidirectional_mix", dtypes=(torch.float32,), kernel=True)
            with register_backend("bidirectional_mix", fused):
                assert chosen() == "fused"
        lacking = Backend(name="mine", module="no.such", dtypes=DTYPES, requires=("no_such_package",), kernel=True)
        with register_backend(op, lacking):
            assert chosen() == usual
    assert chosen() == usual


def test_plain_backends_of_the_other_ops():
    class Plain:
        @staticmethod
        def causal_conv1d(x, weight, bias, *, silu, reverse):
            return x + 1

        @staticmethod
        def rms_norm(x, weight, *, eps, dtype):
            return (x + 2).to(dtype)

        @staticmethod
        def bidirectional_mix(xz, forward_params, backward_params, *, average):
            return xz.chunk(2, dim=-1)[0] + 3

    def row():
        return Backend(name="plain", module=Plain, dtypes=DTYPES, traceable=True)

    x, weight = torch.zeros(1, 2, 3), torch.zeros(3, 4)
    with register_backend("causal_conv1d", row()), register_backend("rms_norm", row()):
        assert causal_conv1d(x, weight).unique().tolist() == [1]
        assert rms_norm(x, torch.ones(3)).unique().tolist() == [2]
    assert causal_conv1d(x, weight).unique().tolist() == [0]
    shapes = ((3, 4), (3,), (5, 3), (3, 1), (3,), (3, 2), (3,))
    params = ScanDirection(*(-torch.ones(shape) for shape in shapes))
    with register_backend("bidirectional_mix", row()):
        found = bidirectional_mix(torch.zeros(1, 2, 6), params, params)
    assert found.unique().tolist() == [3]


@without_shape_hook
@pytest.mark.parametrize("kernel", [True, False])
def test_a_compiled_function_calls_it(fresh_compiler, kernel):
    tensors = {name: t for name, t in scan_inputs().items() if name != "initial_state"}
    row = Backend(name="mine", module=scan_of_plain_torch([]), dtypes=DTYPES, kernel=kernel, traceable=not kernel)
    names = []

    def record(graph, example_inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with register_backend("selective_scan", row):
        found = torch.compile(selective_scan, fullgraph=True, backend=record)(**tensors)
    assert any("mambar" in name for name in names) == kernel
    assert relative_error(found, selective_scan(**tensors, backend="reference")) <= 1e-5


def test_a_registration_that_cannot_be_is_refused():
    row = Backend(name="mine", module=scan_of_plain_torch([]), dtypes=DTYPES, kernel=True)
    with pytest.raises(InputError, match="op='scan' is not known"):
        register_backend("scan", row)
    for name in ("reference", "auto"):
        with pytest.raises(InputError, match=f"selective_scan already has a backend '{name}'"):
            register_backend("selective_scan", Backend(name=name, module="any", dtypes=DTYPES, kernel=True))
    with pytest.raises(InputError, match="no registered backend 'reference'"):
        unregister_backend("selective_scan", "reference")
    with register_backend("selective_scan", row), pytest.raises(InputError, match="already has a backend 'mine'"):
        register_backend("selective_scan", row)
    with pytest.raises(InputError, match="has no function 'rms_norm'"):
        register_backend("rms_norm", Backend(name="mine", module=scan_of_plain_torch([]), dtypes=DTYPES))
    narrow = Backend(name="mine", module="any", dtypes=(torch.float64,), kernel=True)
    refused = pytest.raises(BackendUnavailable, match=r"it takes float64, not torch\.float32")
    with register_backend("selective_scan", narrow), refused:
        selective_scan(**{n: t for n, t in scan_inputs().items() if n != "initial_state"}, backend="mine")
