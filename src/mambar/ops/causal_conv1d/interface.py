"""The causal depthwise convolution: checks, table of backends, custom operator.

A kernel backend is a module with two functions on plain tensors:

    forward(x, weight, bias, *, silu, reverse) -> y
    backward(dy, x, weight, bias, *, silu, reverse) -> (dx, dweight, dbias)

x has stride 1 over channels; batch and time may have any stride. weight, bias and their gradients are float32 (float64
if x is float64); `dbias` is None without a bias. Outputs are new and contiguous.

A plain backend is a module with `causal_conv1d(x, weight, bias, *, silu, reverse) -> y` in differentiable operations.
"""

import sys
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.errors import InputError
from mambar.ops.causal_conv1d import reference
from mambar.ops.checks import as_dtype, check_kernel_dtypes, check_shape, choose_backend, contiguous, rows
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.derivatives import needs_reference, reference_gradients, refuse_forward_mode
from mambar.ops.dispatch import FLOATS, Backend, is_empty, kernel, kernel_backend, register_op

BACKENDS = (
    kernel_backend("causal_conv1d", "cuda", device="cuda", requires=(cuda_missing,)),
    kernel_backend("causal_conv1d", "triton", device="cuda", requires=("triton",)),
    kernel_backend("causal_conv1d", "llvm", device="cpu", requires=("llvmlite",)),
    Backend(name="reference", module="mambar.ops.causal_conv1d.reference", dtypes=FLOATS, traceable=True),
)

# Functions of the backends without a kernel; `register_backend` adds to it.
PLAIN = register_op("causal_conv1d", sys.modules[__name__])


def causal_conv1d(
    x: Float[Tensor, "batch length d_inner"],
    weight: Float[Tensor, "d_inner d_conv"],
    bias: Float[Tensor, " d_inner"] | None = None,
    *,
    activation: Literal["silu"] | None = "silu",
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "batch length d_inner"]:
    """The convolution of each channel with its own filter, then SiLU, in the type of `x`.

    The last column of `weight` multiplies the current position, the others the positions before it, which are zero
    before the sequence. `reverse` mirrors time, like flipping every sequence and the result. Equals causal_conv1d's
    `causal_conv1d_fn`, with channels last.

    Types may be mixed: if any argument is float64, everything is computed in float64, by a backend that supports it.
    Otherwise weight, bias and sums are float32. Each gradient has the type of its argument.
    """
    if activation not in ("silu", None):
        raise InputError(f"activation={activation!r} is not known; use 'silu' or None.")
    check_shape("x", x, batch=None, length=None, d_inner=None)
    check_shape("weight", weight, d_inner=x.shape[2], d_conv=None)
    check_shape("bias", bias, d_inner=x.shape[2])
    if weight.shape[1] == 0:
        raise InputError(f"weight has shape {tuple(weight.shape)}: d_conv is 0; give at least one column.")
    name, tensors = choose_backend("causal_conv1d", backend, ("x",), dict(x=x, weight=weight, bias=bias))
    if is_empty(x):
        return x + 0
    if name in PLAIN:
        y = PLAIN[name](*tensors, silu=activation == "silu", reverse=reverse)
    else:
        y = torch.ops.mambar.causal_conv1d(*tensors, activation == "silu", reverse, name)
    return as_dtype(y, x.dtype)


# The custom operator: one opaque node of a graph, with the name of the backend as a constant.

_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, str backend"
torch.library.define("mambar::causal_conv1d", f"({_ARGUMENTS}) -> Tensor")
torch.library.define("mambar::causal_conv1d_backward", f"(Tensor dy, {_ARGUMENTS}) -> Tensor[]")


@torch.library.impl("mambar::causal_conv1d", "CompositeExplicitAutograd")
def _forward(x, weight, bias, silu, reverse, backend):
    refuse_forward_mode("causal_conv1d", backend)
    check_kernel_dtypes({"x": x, "weight": weight, "bias": bias}, ("x",))
    run = kernel("causal_conv1d", backend).forward
    return run(rows(x), weight.contiguous(), contiguous(bias), silu=silu, reverse=reverse)


@torch.library.register_fake("mambar::causal_conv1d")
def _(x, weight, bias, silu, reverse, backend):
    return x.new_empty(x.shape)


@torch.library.impl("mambar::causal_conv1d_backward", "CompositeExplicitAutograd")
def _backward(dy, x, weight, bias, silu, reverse, backend):
    check_kernel_dtypes({"x": x, "dy": dy, "weight": weight, "bias": bias}, ("x", "dy"))
    run = kernel("causal_conv1d", backend).backward
    gradients = run(rows(dy), rows(x), weight.contiguous(), contiguous(bias), silu=silu, reverse=reverse)
    return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


@torch.library.register_fake("mambar::causal_conv1d_backward")
def _(dy, x, weight, bias, silu, reverse, backend):
    return [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, weight, bias)]


def _keep_for_backward(ctx, inputs, output):
    x, weight, bias, ctx.silu, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    if needs_reference(dy):
        convolve = partial(reference.causal_conv1d, silu=ctx.silu, reverse=ctx.reverse)
        return *reference_gradients(convolve, (x, weight, bias), (dy,)), None, None, None
    run = torch.ops.mambar.causal_conv1d_backward
    dx, dweight, dbias = run(dy, x, weight, bias, ctx.silu, ctx.reverse, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None, None, None


torch.library.register_autograd("mambar::causal_conv1d", _differentiate, setup_context=_keep_for_backward)
