"""Second derivatives, forward-mode AD and torch.func: right on every backend, or one error that says what to do."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from mambar.errors import BackendUnavailable
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.ops import (
    ScanDirection,
    add_rms_norm,
    bidirectional_mix,
    causal_conv1d,
    rms_norm,
    selective_scan_with_state,
    use_backend,
)
from mambar.ops.dispatch import backends
from op_inputs import backend_cases, relative_error, scan_inputs, to_double, without_shape_hook

OPS = ("selective_scan", "causal_conv1d", "rms_norm", "add_rms_norm", "bidirectional_mix")
FIELDS = ScanDirection._fields


def table(op):
    return op.removeprefix("add_")


def draw(op, dtype=torch.float32):
    """The inputs of an op by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if op == "selective_scan":
        return {name: tensor.to(dtype) for name, tensor in scan_inputs(2, 5, 3, 2, dtype=torch.float64).items()}
    if op == "causal_conv1d":
        tensors = {"x": normal(2, 5, 3), "weight": normal(3, 4), "bias": normal(3)}
    elif op == "bidirectional_mix":
        tensors = {"xz": normal(2, 5, 6)}
        for way in ("forward", "backward"):
            params = (
                *(normal(3, 4) / 2, normal(3) / 4, normal(5, 3) / 2, normal(3, 1), normal(3) - 1),
                *(-normal(3, 2).exp(), normal(3)),
            )
            tensors |= {f"{way}.{field}": tensor for field, tensor in zip(FIELDS, params, strict=True)}
    else:
        tensors = {"x": normal(4, 6), "residual": normal(4, 6), "weight": normal(6)}
        if op == "rms_norm":
            del tensors["residual"]
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def call(op, backend="auto"):
    """The op as a function of its tensors, in the order of `draw`."""
    if op == "selective_scan":
        return lambda *t: selective_scan_with_state(*t, delta_softplus=True, backend=backend)
    if op == "bidirectional_mix":
        return lambda xz, *p: bidirectional_mix(xz, ScanDirection(*p[:7]), ScanDirection(*p[7:]), backend=backend)
    function = {"causal_conv1d": causal_conv1d, "rms_norm": rms_norm, "add_rms_norm": add_rms_norm}[op]
    return lambda *t: function(*t, backend=backend)


def scalar(op, backend="auto"):
    """A nonlinear number from the outputs of the op."""
    function = call(op, backend)

    def total(*tensors):
        outputs = function(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(output.double().square().mean() + output.double().sin().sum() for output in outputs)

    return total


def on_cpu(op):
    """Parameters `backend` of the CPU backends of an op, and the automatic choice."""
    given = [case for case in backend_cases(table(op)) if case.values[1] == "cpu"]
    return ["auto", *(pytest.param(case.values[0], id=case.id, marks=case.marks) for case in given)]


every_backend = pytest.mark.parametrize(
    "op, backend",
    [
        pytest.param(op, *getattr(b, "values", (b,)), id=f"{op}-{getattr(b, 'id', b)}", marks=getattr(b, "marks", ()))
        for op in OPS
        for b in on_cpu(op)
    ],
)
every_op = pytest.mark.parametrize("op", OPS)


def second_derivatives(function, tensors):
    """The gradients of a penalty on all first gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
    gradients = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    penalty = sum(gradient.double().square().sum() for gradient in gradients)
    return torch.autograd.grad(penalty, leaves)


def assert_close(found, expected, names, tolerance=1e-4):
    for name, a, b in zip(names, found, expected, strict=True):
        assert a.shape == b.shape and relative_error(a, b) <= tolerance, name


@every_backend
def test_the_second_derivative_is_that_of_the_reference(op, backend):
    tensors = draw(op)
    found = second_derivatives(scalar(op, backend), tensors)
    with use_backend("reference"):
        expected = second_derivatives(scalar(op, "reference"), to_double(tensors))
    assert all(bool(gradient.any()) for gradient in expected)
    assert_close(found, expected, tensors)


@every_backend
def test_a_gradient_kept_for_a_second_derivative_is_the_same(op, backend):
    leaves = [tensor.requires_grad_() for tensor in draw(op).values()]
    plain = torch.autograd.grad(scalar(op, backend)(*leaves), leaves)
    kept = torch.autograd.grad(scalar(op, backend)(*leaves), leaves, create_graph=True)
    assert_close(kept, plain, draw(op), 1e-5)


@every_op
def test_arguments_that_depend_on_each_other_count_once(op):
    # With create_graph the gradient of an argument must not include its way through another argument.
    def tied(backend):
        def function(*leaves):
            first, *others = leaves
            return scalar(op, backend)(first, *(other + 0.1 * first.mean() * (other < 0) for other in others))

        return function

    tensors = draw(op)
    expected = second_derivatives(tied("reference"), to_double(tensors))
    assert_close(second_derivatives(tied("auto"), tensors), expected, tensors)


@every_op
def test_forward_mode_is_the_directional_derivative(op):
    tensors, tangents = draw(op), [torch.randn_like(tensor) for tensor in draw(op, torch.float64).values()]
    double = list(to_double(tensors).values())
    # Central differences in float64; the step keeps A negative.
    step, function = 1e-5, scalar(op, "reference")
    sides = [function(*(t + sign * step * v for t, v in zip(double, tangents, strict=True))) for sign in (1, -1)]
    right = (sides[0] - sides[1]) / (2 * step)
    single = [tangent.float() for tangent in tangents]

    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors.values(), single, strict=True)]
        tangent = forward_ad.unpack_dual(scalar(op)(*duals)).tangent
    assert relative_error(tangent, right) <= 1e-4
    _, tangent = torch.func.jvp(scalar(op), tuple(tensors.values()), tuple(single))
    assert relative_error(tangent, right) <= 1e-4
    _, tangent = torch.autograd.functional.jvp(scalar(op), tuple(tensors.values()), tuple(single))
    assert relative_error(tangent, right) <= 1e-4


@every_op
def test_func_grad_equals_autograd(op):
    tensors = draw(op)
    leaves = [tensor.requires_grad_() for tensor in draw(op).values()]
    expected = torch.autograd.grad(scalar(op)(*leaves), leaves)
    found = torch.func.grad(scalar(op), tuple(range(len(tensors))))(*tensors.values())
    assert_close(found, expected, tensors, 1e-5)


@every_op
def test_vmap_is_a_loop(op):
    tensors = list(draw(op).values())
    first = torch.stack([tensors[0], tensors[0] * 2, -tensors[0]])
    found = torch.func.vmap(call(op), (0, *(None for _ in tensors[1:])))(first, *tensors[1:])
    found = found if isinstance(found, tuple) else (found,)
    for i, one in enumerate(first):
        expected = call(op)(one, *tensors[1:])
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert_close([output[i] for output in found], expected, "ab"[: len(expected)], 1e-5)
    every = [torch.stack([tensor, tensor / 2]) for tensor in tensors]
    per_sample = torch.func.vmap(torch.func.grad(scalar(op)))(*every)
    expected = [torch.func.grad(scalar(op))(*(tensor[i] for tensor in every)) for i in range(2)]
    assert_close(per_sample, expected, "ab", 1e-5)


@every_op
def test_a_batched_backward_pass_is_a_loop(op):
    tensors = draw(op)
    first, *others = tensors.values()

    def of_first(first):
        output = call(op)(first, *others)
        return output[0] if isinstance(output, tuple) else output

    expected = torch.autograd.functional.jacobian(of_first, first)
    found = torch.autograd.functional.jacobian(of_first, first, vectorize=True)
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize(
    "op, backend",
    [
        (op, row.name)
        for op in OPS
        for row in backends(table(op))
        if not row.traceable and "cuda" not in row.devices[:1]
    ],
)
def test_a_backend_without_forward_mode_is_refused_by_name(op, backend, need_package):
    if backend == "llvm":
        need_package("llvmlite")
    tensors = draw(op)
    for run in (
        lambda: torch.func.grad(scalar(op, backend))(*tensors.values()),
        lambda: torch.func.vmap(call(op, backend))(*(tensor[None] for tensor in tensors.values())),
        lambda: torch.func.jvp(scalar(op, backend), tuple(tensors.values()), tuple(tensors.values())),
    ):
        with pytest.raises(
            BackendUnavailable, match=rf"{table(op)}: backend '{backend}' cannot run: it does not support"
        ):
            run()


@pytest.mark.parametrize("op", OPS)
def test_the_operator_itself_refuses_forward_mode(op, stub_kernels):
    tensors = list(draw(op).values())
    arguments = {
        "selective_scan": lambda u, *rest: (u, *rest, True, False, False, "stub"),
        "causal_conv1d": lambda x, *rest: (x, *rest, True, False, "stub"),
        "rms_norm": lambda x, weight: (x, None, weight, 1e-5, torch.float32, "stub"),
        "add_rms_norm": lambda x, residual, weight: (x, residual, weight, 1e-5, torch.float32, "stub"),
        "bidirectional_mix": lambda xz, *rest: (xz, *rest, True, False, "stub"),
    }[op]
    operator = getattr(torch.ops.mambar, table(op))
    with forward_ad.dual_level():
        first = forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
        with pytest.raises(BackendUnavailable, match="does not support forward-mode AD"):
            operator(*arguments(first, *tensors[1:]))


@without_shape_hook
def test_a_compiled_backward_pass_runs_the_kernel(stub_kernels, fresh_compiler):
    # Tracing must not look like a second derivative, which the reference computes.
    graphs = []

    def record(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if "mambar" in str(node.target)])
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    scan = torch.compile(call("selective_scan", "stub"), fullgraph=True, backend=backend)
    scan(*(tensor.requires_grad_() for tensor in draw("selective_scan").values()))[0].sum().backward()
    assert graphs == [["mambar.selective_scan.default"], ["mambar.selective_scan_backward.default"]]


@without_shape_hook
def test_torch_func_inside_a_compiled_function(fresh_compiler):
    tensors = tuple(draw("selective_scan").values())
    expected = torch.func.grad(scalar("selective_scan"))(*tensors)
    found = torch.compile(torch.func.grad(scalar("selective_scan")), fullgraph=True, backend="aot_eager")(*tensors)
    assert relative_error(found, expected) <= 1e-5


def test_the_reference_of_the_mix_calls_references_only():
    tensors = draw("bidirectional_mix")
    found = call("bidirectional_mix", "reference")(*tensors.values())
    with use_backend("reference"):
        expected = call("bidirectional_mix")(*tensors.values())
    assert torch.equal(found, expected)
    with use_backend("doubling"):
        assert torch.equal(call("bidirectional_mix", "reference")(*tensors.values()), expected)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = VisionMambaConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, d_state=4, num_registers=2, num_classes=3
    )
    return VisionMamba(config).eval()


def test_a_gradient_penalty_of_a_model(model):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def penalties(model, images):
        images = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        parameters = list(model.parameters())
        found = torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    found = penalties(model, images)
    with use_backend("reference"):
        expected = penalties(model.double(), images.double())
    names = [name for name, _ in model.named_parameters()]
    assert sum(bool(gradient.any()) for gradient in expected) > len(names) / 2
    largest = max(gradient.abs().max() for gradient in expected)
    for name, a, b in zip(names, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6 * largest, name


def test_forward_mode_and_torch_func_of_a_model(model):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tangent = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).square().sum(), leaf)
    directional = (gradient * tangent).sum()

    def loss(images):
        return model(images).square().sum()

    with torch.no_grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(loss(forward_ad.make_dual(images, tangent))).tangent
    assert relative_error(found, directional) <= 1e-4
    assert relative_error(torch.func.jvp(loss, (images,), (tangent,))[1], directional) <= 1e-4
    assert relative_error(torch.func.grad(loss)(images), gradient) <= 1e-4
    each = torch.func.vmap(torch.func.grad(lambda image: loss(image[None])))(images)
    assert relative_error(each, gradient) <= 1e-4
    parameters = dict(model.named_parameters())
    found = torch.func.grad(lambda p: torch.func.functional_call(model, p, (images,)).square().sum())(parameters)
    expected = torch.autograd.grad(loss(images), list(parameters.values()), allow_unused=True)
    for name, right in zip(parameters, expected, strict=True):
        assert right is None or relative_error(found[name], right) <= 1e-3, name
