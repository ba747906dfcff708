"""RMS normalisation: checks, the table of backends, and the op that kernels stand behind.

A kernel backend is a module with `forward(x, residual, weight, *, eps, dtype) -> (normed, total, inverse_rms)`
and `backward(dnormed, dtotal, total, weight, inverse_rms, *, eps) -> (gradient of total, dweight)`, all on
matrices (rows, D). `normed` has the type `dtype`, `total` (x + residual) that of residual, `inverse_rms` (rows)
is float32. Without a residual `total` is an empty tensor, and x takes its place in `backward`. weight is
float32, as is `dweight`; `dtotal` may be None. Outputs are new and contiguous.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.ops.checks import (
    FLOATS,
    KERNEL_FLOATS,
    as_dtype,
    check_device,
    check_floating,
    check_shape,
    compute_dtype,
    rows,
)
from mambar.ops.dispatch import Backend, kernel, mode, resolve
from mambar.ops.rms_norm import reference

BACKENDS = (
    Backend(
        name="triton",
        module="mambar.ops.rms_norm.triton",
        devices=("cuda",),
        dtypes=KERNEL_FLOATS,
        requires=("triton",),
        kernel=True,
    ),
    Backend(name="reference", module="mambar.ops.rms_norm.reference", dtypes=FLOATS, traceable=True),
)

_PLAIN = {"reference": reference.rms_norm}


def rms_norm(
    x: Float[Tensor, "*rows dim"],
    weight: Float[Tensor, " dim"],
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*rows dim"]:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, inside float32, given in `dtype` (None: of `x`)."""
    check_floating("x", x)
    check_shape("weight", weight, dim=x.shape[-1])
    check_device(x=x, weight=weight)
    name = resolve("rms_norm", backend, device=x.device, dtype=x.dtype)
    weight, dtype = as_dtype(weight, compute_dtype(x, weight)), dtype or x.dtype
    if mode() == "eager" and x.numel() == 0:
        return as_dtype(x + 0, dtype)
    if name in _PLAIN:
        return _PLAIN[name](x, weight, eps=eps, dtype=dtype)
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
    """The sum `x + residual` normalised, in the type of `x`, and the sum itself, at least float32.

    With 16-bit `x` and a float32 `residual` the stream stays float32 and the branch 16-bit, as in the
    official block.
    """
    check_shape("x", x, **{f"axis {axis}": size for axis, size in enumerate(residual.shape)})
    check_shape("weight", weight, dim=x.shape[-1])
    check_device(x=x, residual=residual, weight=weight)
    name = resolve("rms_norm", backend, device=x.device, dtype=x.dtype)
    wide = compute_dtype(x, residual, weight)
    weight, residual = as_dtype(weight, wide), as_dtype(residual, wide)
    if mode() == "eager" and x.numel() == 0:
        return x + 0, x + residual
    if name in _PLAIN:
        total = x + residual
        return _PLAIN[name](total, weight, eps=eps, dtype=x.dtype), total
    matrices = (x.reshape(-1, x.shape[-1]), residual.reshape(-1, x.shape[-1]))
    normed, total, _ = torch.ops.mambar.rms_norm(*matrices, weight, eps, x.dtype, name)
    return normed.view(x.shape), total.view(x.shape)


# The op: one opaque node of a graph, with the backend's name as a constant.

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
    residual = None if residual is None else rows(residual)
    return list(kernel("rms_norm", backend).forward(rows(x), residual, weight.contiguous(), eps=eps, dtype=dtype))


@torch.library.register_fake("mambar::rms_norm")
def _(x, residual, weight, eps, dtype, backend):
    total = x.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    return [x.new_empty(x.shape, dtype=dtype), total, weight.new_empty(x.shape[0])]


@torch.library.impl("mambar::rms_norm_backward", "CompositeExplicitAutograd")
def _backward(dnormed, dtotal, total, weight, inverse_rms, eps, backend):
    dtotal = None if dtotal is None else rows(dtotal)
    run = kernel("rms_norm", backend).backward
    return list(run(rows(dnormed), dtotal, rows(total), weight.contiguous(), inverse_rms, eps=eps))


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
    if dnormed is None:
        dnormed = total.new_zeros(total.shape, dtype=ctx.dtype)
    run = torch.ops.mambar.rms_norm_backward
    gradient, dweight = run(dnormed, dtotal if ctx.adds else None, total, weight, inverse_rms, ctx.eps, ctx.backend)
    return gradient.to(ctx.branch_dtype), gradient if ctx.adds else None, dweight, None, None, None


torch.library.register_autograd("mambar::rms_norm", _differentiate, setup_context=_keep_for_backward)
