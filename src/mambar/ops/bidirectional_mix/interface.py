"""The bidirectional mix: checks, table of backends, custom operator.

A fused backend is a module with three functions on plain tensors:

    empty_saved(xz, forward_params, backward_params) -> list[Tensor]
    forward(xz, forward_params, backward_params, *, average, for_backward) -> (out, saved)
    backward(dout, xz, forward_params, backward_params, saved, *, average) -> (dxz, dforward, dbackward)

* `empty_saved` allocates the tensors that `forward` fills for `backward`. It may only use shapes and types. In
  `backward`, `saved` ends with one more tensor, the output, which the network keeps anyway.
* xz has stride 1 over channels. `x_proj` and `dt_proj` have the type of xz, the other parameters are float32 (float64
  if xz is float64).
* Each gradient has the type of its argument, and is None for an absent bias. Outputs are new and contiguous.

A fused backend computes both directions in one call, which saves memory traffic and kernel launches. Without one the
mix is composed of `causal_conv1d` and `selective_scan`, so that a backend of `selective_scan` is enough.

A plain backend is a module with `bidirectional_mix(xz, forward_params, backward_params, *, average) -> out`.
"""

import sys
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.errors import InputError
from mambar.ops.bidirectional_mix import reference
from mambar.ops.bidirectional_mix.direction import ScanDirection as ScanDirection
from mambar.ops.checks import (
    as_dtype,
    autocast_dtype,
    check_decay,
    check_device,
    check_shape,
    compute_dtype,
    find_float64,
)
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.dispatch import FLOATS, Backend, is_empty, kernel_backend, register_op, resolve
from mambar.ops.kernel_op import KernelOp

BACKENDS = (
    kernel_backend("bidirectional_mix", "cuda", device="cuda", requires=(cuda_missing, "triton")),
    kernel_backend("bidirectional_mix", "llvm", device="cpu", requires=("llvmlite",)),
    Backend(name="composed", module="mambar.ops.bidirectional_mix.composed", dtypes=FLOATS, traceable=True),
    Backend(name="reference", module="mambar.ops.bidirectional_mix.reference", dtypes=FLOATS, traceable=True),
)

# Functions of the backends without a kernel; `register_backend` adds to it.
PLAIN = register_op("bidirectional_mix", sys.modules[__name__])


@accept_old_names({"ahead": "forward_params", "behind": "backward_params"})
def bidirectional_mix(
    xz: Float[Tensor, "batch length channels"],
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    *,
    average: bool = True,
    A_is_log: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "batch length d_inner"]:
    """The computation of the vision mixer between its two projections; `xz` holds x and the gate z along channels.

    For each direction: causal convolution and SiLU, projection to step size, B and C, then the selective scan with
    softplus, skip and gate. The backward direction scans from the last token to the first. The result is the sum of
    both directions, halved if `average` as in Mamba-R (arXiv 2405.14858); the first version of Vim sums.

    With `A_is_log` the field A of both directions is the parameter A_log. The decay rates -exp(A_log) are computed in
    at least float32 and need no check.

    Under autocast the projections are computed in its type; state, softplus and gate are float32. Types may be mixed.
    If any argument is float64, everything is computed in float64, by a backend that supports it. Otherwise `x_proj`
    and `dt_proj` are cast to the type of `xz` (under autocast to its type), the other parameters to float32. Each
    gradient has the type of its argument.

    `backend="composed"` calls `causal_conv1d` and `selective_scan` with their automatic choice, `backend="reference"`
    with their reference.
    """
    _check(xz, forward_params, backward_params, A_is_log)
    given = xz.dtype
    float64 = find_float64(_NAMES, (xz, *forward_params, *backward_params))
    wide = compute_dtype(float64)
    xz = as_dtype(xz, wide) if float64 else xz
    dtype = wide if float64 else autocast_dtype(xz.device.type) or given
    options = {"float64": float64, "otherwise": "composed"}
    name = resolve("bidirectional_mix", backend, device=xz.device, dtype=dtype, **options)
    if is_empty(xz):
        return as_dtype(xz.chunk(2, dim=-1)[0] + 0, given)
    forward_params, backward_params = (
        _prepared(params, dtype, wide, A_is_log) for params in (forward_params, backward_params)
    )
    if name in PLAIN:
        out = PLAIN[name](xz, forward_params, backward_params, average=average)
    else:
        tensors = (as_dtype(xz, dtype), *forward_params, *backward_params)
        for_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        out, *_ = torch.ops.mambar.bidirectional_mix(*tensors, average, for_backward, name)
    return as_dtype(out, given) if float64 else out


# The dimensions of each field of `ScanDirection`.
_SIZES = {
    "conv_weight": ("d_inner", "d_conv"),
    "conv_bias": ("d_inner",),
    "x_proj": ("dt_rank_and_states", "d_inner"),
    "dt_proj": ("d_inner", "dt_rank"),
    "dt_bias": ("d_inner",),
    "A": ("d_inner", "d_state"),
    "D": ("d_inner",),
}


def _check(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection, A_is_log: bool) -> None:
    check_shape("xz", xz, batch=None, length=None, channels=None)
    if xz.shape[2] % 2:
        raise InputError(f"xz has {xz.shape[2]} channels; it needs an even number: x, then the gate z.")
    inner, device = xz.shape[2] // 2, xz.device
    for name, params in (("forward_params", forward_params), ("backward_params", backward_params)):
        rank, state = params.sizes
        vector, taps = (inner,), params.conv_weight.shape[1] if params.conv_weight.dim() == 2 else None
        shapes: tuple[tuple[int | None, ...], ...] = (
            *((inner, taps), vector, (rank + 2 * state, inner), (inner, rank), vector),
            *((inner, state), vector),
        )
        # One comparison each for the usual case; the message is put together only for an error.
        for (field, words), tensor, shape in zip(_SIZES.items(), params, shapes, strict=True):
            if tensor is not None and (tensor.shape != shape or tensor.dtype not in FLOATS or tensor.device != device):
                check_shape(f"{name}.{field}", tensor, **dict(zip(words, shape, strict=True)))
                check_device(xz=xz, **{f"{name}.{field}": tensor})
        if state == 0 or not A_is_log:
            check_decay(params.A)


def _prepared(params: ScanDirection, dtype: torch.dtype, wide: torch.dtype, A_is_log: bool) -> ScanDirection:
    """The parameters in the types of a backend, with the decay rates as A."""
    conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D = params
    A = as_dtype(A, wide)
    return ScanDirection(
        as_dtype(conv_weight, wide),
        as_dtype(conv_bias, wide),
        as_dtype(x_proj, dtype),
        as_dtype(dt_proj, dtype),
        as_dtype(dt_bias, wide),
        -torch.exp(A) if A_is_log else A,
        as_dtype(D, wide),
    )


def _pack(xz: Tensor, *params: Any) -> tuple[Tensor, ScanDirection, ScanDirection]:
    return xz, ScanDirection(*params[:7]), ScanDirection(*params[7:])


_NAMES = ("xz", *(f"{way}_params.{field}" for way in ("forward", "backward") for field in ScanDirection._fields))
KernelOp(
    "bidirectional_mix",
    tensors=_NAMES,
    optional=[name for name in _NAMES if name.endswith("conv_bias")],
    options=("average",),
    activations=[name for name in _NAMES if name == "xz" or name.endswith("_proj")],
    strided=("xz",),
    outputs=lambda xz, *_: [xz.new_empty(xz.shape[0], xz.shape[1], xz.shape[2] // 2)],
    num_outputs=1,
    reference=reference.bidirectional_mix,
    pack=_pack,
    keeps_output=True,
)
