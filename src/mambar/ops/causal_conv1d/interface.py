"""The causal depthwise convolution: checks, the table of backends, and the op that kernels stand behind.

A kernel backend is a module with `forward(x, weight, bias, *, silu, reverse) -> y` and `backward(dy, x,
weight, bias, *, silu, reverse) -> (dx, dweight, dbias)`. x has its channels beside each other (any stride of
batch and time); weight and bias are float32, as are their gradients; `dbias` is None when there is no bias.
Outputs are new and contiguous.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.errors import InputError
from mambar.ops.causal_conv1d import reference
from mambar.ops.checks import FLOATS, KERNEL_FLOATS, as_dtype, check_device, check_shape, compute_dtype, rows
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.dispatch import Backend, kernel, mode, resolve

BACKENDS = (
    Backend(
        name="cuda",
        module="mambar.ops.causal_conv1d.cuda",
        devices=("cuda",),
        dtypes=KERNEL_FLOATS,
        requires=(cuda_missing,),
        kernel=True,
    ),
    Backend(
        name="triton",
        module="mambar.ops.causal_conv1d.triton",
        devices=("cuda",),
        dtypes=KERNEL_FLOATS,
        requires=("triton",),
        kernel=True,
    ),
    Backend(
        name="llvm",
        module="mambar.ops.causal_conv1d.llvm",
        devices=("cpu",),
        dtypes=KERNEL_FLOATS,
        requires=("llvmlite",),
        kernel=True,
    ),
    Backend(name="reference", module="mambar.ops.causal_conv1d.reference", dtypes=FLOATS, traceable=True),
)

_PLAIN = {"reference": reference.causal_conv1d}


def causal_conv1d(
    x: Float[Tensor, "batch length inner"],
    weight: Float[Tensor, "inner taps"],
    bias: Float[Tensor, " inner"] | None = None,
    *,
    activation: Literal["silu"] | None = "silu",
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "batch length inner"]:
    """Each channel convolved with its own taps, then SiLU, in the type of `x`; sums are float32 or float64.

    The last tap meets the present position, the others the past, which is zero before the sequence. `reverse`
    mirrors time: the past lies after the position, as when every sequence and the result are flipped. Equals
    causal_conv1d's `causal_conv1d_fn` but for channels last.
    """
    if activation not in ("silu", None):
        raise InputError(f"activation={activation!r} is not known; use 'silu' or None.")
    check_shape("x", x, batch=None, length=None, inner=None)
    check_shape("weight", weight, inner=x.shape[2], taps=None)
    check_shape("bias", bias, inner=x.shape[2])
    check_device(x=x, weight=weight, bias=bias)
    if weight.shape[1] == 0:
        raise InputError(f"weight has shape {tuple(weight.shape)}: no taps; give at least one column.")
    name = resolve("causal_conv1d", backend, device=x.device, dtype=x.dtype)
    wide = compute_dtype(x, weight)
    weight, bias = as_dtype(weight, wide), as_dtype(bias, wide)
    if mode() == "eager" and x.numel() == 0:
        return x + 0
    if name in _PLAIN:
        return _PLAIN[name](x, weight, bias, silu=activation == "silu", reverse=reverse)
    return torch.ops.mambar.causal_conv1d(x, weight, bias, activation == "silu", reverse, name)


# The op: one opaque node of a graph, with the backend's name as a constant.

_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, str backend"
torch.library.define("mambar::causal_conv1d", f"({_ARGUMENTS}) -> Tensor")
torch.library.define("mambar::causal_conv1d_backward", f"(Tensor dy, {_ARGUMENTS}) -> Tensor[]")


@torch.library.impl("mambar::causal_conv1d", "CompositeExplicitAutograd")
def _forward(x, weight, bias, silu, reverse, backend):
    bias = None if bias is None else bias.contiguous()
    run = kernel("causal_conv1d", backend).forward
    return run(rows(x), weight.contiguous(), bias, silu=silu, reverse=reverse)


@torch.library.register_fake("mambar::causal_conv1d")
def _(x, weight, bias, silu, reverse, backend):
    return x.new_empty(x.shape)


@torch.library.impl("mambar::causal_conv1d_backward", "CompositeExplicitAutograd")
def _backward(dy, x, weight, bias, silu, reverse, backend):
    bias = None if bias is None else bias.contiguous()
    run = kernel("causal_conv1d", backend).backward
    gradients = run(rows(dy), rows(x), weight.contiguous(), bias, silu=silu, reverse=reverse)
    return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


@torch.library.register_fake("mambar::causal_conv1d_backward")
def _(dy, x, weight, bias, silu, reverse, backend):
    return [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, weight, bias)]


def _keep_for_backward(ctx, inputs, output):
    x, weight, bias, ctx.silu, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    run = torch.ops.mambar.causal_conv1d_backward
    dx, dweight, dbias = run(dy, x, weight, bias, ctx.silu, ctx.reverse, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None, None, None


torch.library.register_autograd("mambar::causal_conv1d", _differentiate, setup_context=_keep_for_backward)
