"""RMS normalisation: checks, table of backends, custom operator.

A kernel backend is a module with two functions on matrices (rows, dim):

    forward(x, residual, weight, *, eps, dtype) -> (normed, total, inverse_rms)
    backward(dnormed, dtotal, total, weight, inverse_rms, *, eps) -> (gradient of total, dweight)

`total` is x + residual in the type of residual, `normed` has the type `dtype`, `inverse_rms` is (rows,). Without a
residual `total` is an empty tensor, and `backward` gets x in its place. residual, weight, `dweight` and `inverse_rms`
are float32 (float64 if x is float64); `dtotal` may be None. Outputs are new and contiguous.

A plain backend is a module with `rms_norm(x, weight, *, eps, dtype) -> normed` in differentiable operations. The
backend `inference` also adds the residual.
"""

import sys
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.ops.checks import as_dtype, check_floating, check_kernel_dtypes, check_shape, choose_backend, rows
from mambar.ops.derivatives import needs_reference, reference_gradients, refuse_forward_mode
from mambar.ops.dispatch import FLOATS, Backend, is_empty, kernel, kernel_backend, register_op
from mambar.ops.rms_norm import inference, reference

BACKENDS = (
    kernel_backend("rms_norm", "triton", device="cuda", requires=("triton",)),
    Backend(
        name="inference",
        module="mambar.ops.rms_norm.inference",
        devices=("cpu",),
        dtypes=FLOATS,
        requires=("llvmlite",),
    ),
    Backend(name="reference", module="mambar.ops.rms_norm.reference", dtypes=FLOATS, traceable=True),
)

# Functions of the backends without a kernel; `register_backend` adds to it.
PLAIN = register_op("rms_norm", sys.modules[__name__])


def rms_norm(
    x: Float[Tensor, "*rows dim"],
    weight: Float[Tensor, " dim"],
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*rows dim"]:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, in `dtype` (default: the type of `x`).

    Computed in float32, or in float64 if `x` or `weight` is float64. Each gradient has the type of its argument.
    """
    check_floating("x", x)
    check_shape("weight", weight, dim=x.shape[-1])
    dtype = dtype or x.dtype
    if dtype not in FLOATS:
        raise TypeError(f"dtype={dtype} is not supported; use float32, bfloat16, float16 or float64.")
    name, (x, weight) = choose_backend("rms_norm", backend, ("x",), dict(x=x, weight=weight))
    if is_empty(x):
        return as_dtype(x + 0, dtype)
    if name in PLAIN:
        return PLAIN[name](x, weight, eps=eps, dtype=dtype)
    matrix = x.reshape(-1, x.shape[-1])
    return torch.ops.mambar.rms_norm(matrix, None, weight, eps, dtype, name)[0].view(x.shape)


def add_rms_norm(
    x: Float[Tensor, "*rows dim"],
    residual: Float[Tensor, "*rows dim"],
    weight: Float[Tensor, " dim"],
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Float[Tensor, "*rows dim"], Float[Tensor, "*rows dim"]]:
    """The normalised sum `x + residual` in the type of `x`, and the sum in float32 or float64.

    With 16-bit `x` and a float32 `residual`, as under autocast, the residual stream stays float32. If any argument is
    float64, everything is computed in float64. Each gradient has the type of its argument.
    """
    check_floating("residual", residual)
    if x.shape != residual.shape or x.dtype not in FLOATS:
        check_shape("x", x, **{f"axis {axis}": size for axis, size in enumerate(residual.shape)})
    check_shape("weight", weight, dim=x.shape[-1])
    dtype, given = x.dtype, dict(x=x, residual=residual, weight=weight)
    name, (x, residual, weight) = choose_backend("rms_norm", backend, ("x",), given)
    if is_empty(x):
        return as_dtype(x + 0, dtype), x + residual
    if name in PLAIN:
        if name == "inference" and residual.dtype == torch.float32:
            return inference.add_rms_norm(x, residual, weight, eps=eps)
        total = x + residual
        return PLAIN[name](total, weight, eps=eps, dtype=dtype), total
    matrices = (x.reshape(-1, x.shape[-1]), residual.reshape(-1, x.shape[-1]))
    normed, total, _ = torch.ops.mambar.rms_norm(*matrices, weight, eps, dtype, name)
    return normed.view(x.shape), total.view(x.shape)


# The custom operator: one opaque node of a graph, with the name of the backend as a constant.

torch.library.define(
    "mambar::rms_norm",
    "(Tensor x, Tensor? residual, Tensor weight, float eps, ScalarType dtype, str backend) -> Tensor[]",
)
torch.library.define(
    "mambar::rms_norm_backward",
    "(Tensor dnormed, Tensor? dtotal, Tensor total, Tensor weight, Tensor inverse_rms, "
    "float eps, str backend) -> Tensor[]",
)


@torch.library.impl("mambar::rms_norm", "CompositeExplicitAutograd")
def _forward(x, residual, weight, eps, dtype, backend):
    refuse_forward_mode("rms_norm", backend)
    check_kernel_dtypes({"x": x, "residual": residual, "weight": weight}, ("x",))
    run = kernel("rms_norm", backend).forward
    return list(run(rows(x), rows(residual), weight.contiguous(), eps=eps, dtype=dtype))


@torch.library.register_fake("mambar::rms_norm")
def _(x, residual, weight, eps, dtype, backend):
    total = x.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    return [x.new_empty(x.shape, dtype=dtype), total, weight.new_empty(x.shape[0])]


@torch.library.impl("mambar::rms_norm_backward", "CompositeExplicitAutograd")
def _backward(dnormed, dtotal, total, weight, inverse_rms, eps, backend):
    run = kernel("rms_norm", backend).backward
    return list(run(rows(dnormed), rows(dtotal), rows(total), weight.contiguous(), inverse_rms, eps=eps))


@torch.library.register_fake("mambar::rms_norm_backward")
def _(dnormed, dtotal, total, weight, inverse_rms, eps, backend):
    return [total.new_empty(total.shape), weight.new_empty(weight.shape)]


def _keep_for_backward(ctx, inputs, output):
    x, residual, weight, ctx.eps, ctx.dtype, ctx.backend = inputs
    _, total, inverse_rms = output
    ctx.branch_dtype, ctx.adds = x.dtype, residual is not None
    ctx.save_for_backward(total if ctx.adds else x, weight, inverse_rms)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradients):
    total, weight, inverse_rms = ctx.saved_tensors
    dnormed, dtotal, _ = gradients
    if needs_reference(dnormed, dtotal):
        norm = partial(_norm_and_total, eps=ctx.eps, dtype=ctx.dtype)
        outputs = (dnormed, dtotal if ctx.adds else None)
        gradient, dweight = reference_gradients(norm, (total, weight), outputs)
        branch = None if gradient is None else gradient.to(ctx.branch_dtype)
        return branch, gradient if ctx.adds else None, dweight, None, None, None
    if dnormed is None:
        dnormed = total.new_zeros(total.shape, dtype=ctx.dtype)
    run = torch.ops.mambar.rms_norm_backward
    gradient, dweight = run(dnormed, dtotal if ctx.adds else None, total, weight, inverse_rms, ctx.eps, ctx.backend)
    return gradient.to(ctx.branch_dtype), gradient if ctx.adds else None, dweight, None, None, None


def _norm_and_total(total, weight, *, eps, dtype):
    return reference.rms_norm(total, weight, eps=eps, dtype=dtype), total


torch.library.register_autograd("mambar::rms_norm", _differentiate, setup_context=_keep_for_backward)
