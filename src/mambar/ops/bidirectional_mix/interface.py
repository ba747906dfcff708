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
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.errors import InputError
from mambar.ops.bidirectional_mix import composed, reference
from mambar.ops.bidirectional_mix.direction import ScanDirection as ScanDirection
from mambar.ops.checks import (
    as_dtype,
    autocast_dtype,
    check_decay,
    check_device,
    check_kernel_dtypes,
    check_shape,
    common_dtype,
    compute_dtype,
    contiguous,
    find_float64,
    rows,
)
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.derivatives import needs_reference, reference_gradients, refuse_forward_mode
from mambar.ops.dispatch import FLOATS, Backend, is_empty, kernel, kernel_backend, register_op, resolve

BACKENDS = (
    kernel_backend("bidirectional_mix", "cuda", device="cuda", requires=(cuda_missing, "triton")),
    kernel_backend("bidirectional_mix", "llvm", device="cpu", requires=("llvmlite",)),
    Backend(name="composed", module="mambar.ops.bidirectional_mix.composed", dtypes=FLOATS, traceable=True),
    Backend(name="reference", module="mambar.ops.bidirectional_mix.reference", dtypes=FLOATS, traceable=True),
)

# Backends without a kernel; `register_backend` adds to it.
PLAIN = {"composed": composed.bidirectional_mix, "reference": reference.bidirectional_mix}
register_op("bidirectional_mix", sys.modules[__name__])


@accept_old_names({"ahead": "forward_params", "behind": "backward_params"})
def bidirectional_mix(
    xz: Float[Tensor, "batch length channels"],
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    *,
    average: bool = True,
    backend: str = "auto",
) -> Float[Tensor, "batch length d_inner"]:
    """The computation of the vision mixer between its two projections; `xz` holds x and the gate z along channels.

    For each direction: causal convolution and SiLU, projection to step size, B and C, then the selective scan with
    softplus, skip and gate. The backward direction scans from the last token to the first. The result is the sum of
    both directions, halved if `average` as in Mamba-R (arXiv 2405.14858); the first version of Vim sums.

    Under autocast the projections are computed in its type; state, softplus and gate are float32. Types may be mixed.
    If any argument is float64, everything is computed in float64, by a backend that supports it. Otherwise `x_proj`
    and `dt_proj` are cast to the type of `xz` (under autocast to its type), the other parameters to float32. Each
    gradient has the type of its argument.

    `backend="composed"` calls `causal_conv1d` and `selective_scan` with their automatic choice, `backend="reference"`
    with their reference.
    """
    _check(xz, forward_params, backward_params)
    given = xz.dtype
    float64 = find_float64(**dict(zip(_NAMES, (xz, *forward_params, *backward_params), strict=True)))
    wide = compute_dtype(float64)
    xz = as_dtype(xz, common_dtype(xz, wide=wide))
    dtype = _linear_dtype(xz)
    options = {"float64": float64, "otherwise": "composed"}
    name = resolve("bidirectional_mix", backend, device=xz.device, dtype=dtype, **options)
    if is_empty(xz):
        return as_dtype(xz.chunk(2, dim=-1)[0] + 0, given)
    forward_params, backward_params = (_typed(params, dtype, wide) for params in (forward_params, backward_params))
    if name in PLAIN:
        out = PLAIN[name](xz, forward_params, backward_params, average=average)
    else:
        tensors = (as_dtype(xz, dtype), *forward_params, *backward_params)
        for_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        out, *_ = torch.ops.mambar.bidirectional_mix(*tensors, average, for_backward, name)
    return as_dtype(out, given) if wide == torch.float64 else out


def _check(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> None:
    check_shape("xz", xz, batch=None, length=None, channels=None)
    if xz.shape[2] % 2:
        raise InputError(f"xz has {xz.shape[2]} channels; it needs an even number: x, then the gate z.")
    d_inner = xz.shape[2] // 2
    for name, params in (("forward_params", forward_params), ("backward_params", backward_params)):
        dt_rank, d_state = params.sizes
        check_shape(f"{name}.conv_weight", params.conv_weight, d_inner=d_inner, d_conv=None)
        check_shape(f"{name}.conv_bias", params.conv_bias, d_inner=d_inner)
        check_shape(f"{name}.x_proj", params.x_proj, dt_rank_and_states=dt_rank + 2 * d_state, d_inner=d_inner)
        check_shape(f"{name}.dt_proj", params.dt_proj, d_inner=d_inner, dt_rank=dt_rank)
        check_shape(f"{name}.dt_bias", params.dt_bias, d_inner=d_inner)
        check_shape(f"{name}.A", params.A, d_inner=d_inner, d_state=d_state)
        check_shape(f"{name}.D", params.D, d_inner=d_inner)
        check_decay(params.A)
        check_device(xz=xz, **{f"{name}.{field}": tensor for field, tensor in params._asdict().items()})


def _linear_dtype(xz: Tensor) -> torch.dtype:
    return xz.dtype if xz.dtype == torch.float64 else autocast_dtype(xz.device.type) or xz.dtype


def _typed(params: ScanDirection, dtype: torch.dtype, wide: torch.dtype) -> ScanDirection:
    types = {"x_proj": dtype, "dt_proj": dtype}
    return ScanDirection(*(as_dtype(tensor, types.get(name, wide)) for name, tensor in params._asdict().items()))


# The custom operator: one opaque node of a graph, with the name of the backend as a constant.

_DIRECTION = (
    "Tensor conv_weight{0}, Tensor? conv_bias{0}, Tensor x_proj{0}, Tensor dt_proj{0}, "
    "Tensor dt_bias{0}, Tensor A{0}, Tensor D{0}"
)
_NAMES = ("xz", *(f"{way}_params.{field}" for way in ("forward", "backward") for field in ScanDirection._fields))
_ARGUMENTS = f"Tensor xz, {_DIRECTION.format(1)}, {_DIRECTION.format(2)}"
torch.library.define(
    "mambar::bidirectional_mix", f"({_ARGUMENTS}, bool average, bool for_backward, str backend) -> Tensor[]"
)
torch.library.define(
    "mambar::bidirectional_mix_backward",
    f"(Tensor dout, {_ARGUMENTS}, Tensor[] saved, bool average, str backend) -> Tensor[]",
)


def _unpacked(tensors: Sequence[Any]) -> tuple[Tensor, ScanDirection, ScanDirection]:
    xz, *params = tensors
    return xz, ScanDirection(*params[:7]), ScanDirection(*params[7:14])


def _kernel_arguments(tensors: Sequence[Any]) -> tuple[Tensor, ScanDirection, ScanDirection]:
    named = dict(zip(_NAMES, tensors, strict=True))
    projections = {name: tensor for name, tensor in named.items() if name == "xz" or "_proj" in name}
    check_kernel_dtypes(projections, {name: tensor for name, tensor in named.items() if name not in projections})
    xz, *parameters = tensors
    return _unpacked((rows(xz), *map(contiguous, parameters)))


@torch.library.impl("mambar::bidirectional_mix", "CompositeExplicitAutograd")
def _forward(*arguments):
    *tensors, average, for_backward, backend = arguments
    refuse_forward_mode("bidirectional_mix", backend)
    run = kernel("bidirectional_mix", backend).forward
    out, saved = run(*_kernel_arguments(tensors), average=average, for_backward=for_backward)
    return [out, *saved]


@torch.library.register_fake("mambar::bidirectional_mix")
def _(*arguments):
    *tensors, _, for_backward, backend = arguments
    xz, forward_params, backward_params = _unpacked(tensors)
    out = xz.new_empty(xz.shape[0], xz.shape[1], xz.shape[2] // 2)
    empty_saved = kernel("bidirectional_mix", backend).empty_saved
    return [out, *(empty_saved(xz, forward_params, backward_params) if for_backward else [])]


@torch.library.impl("mambar::bidirectional_mix_backward", "CompositeExplicitAutograd")
def _backward(dout, *arguments):
    *tensors, saved, average, backend = arguments
    run = kernel("bidirectional_mix", backend).backward
    dxz, dforward, dbackward = run(rows(dout), *_kernel_arguments(tensors), saved, average=average)
    return [dxz, *(dxz.new_empty(0) if gradient is None else gradient for gradient in (*dforward, *dbackward))]


@torch.library.register_fake("mambar::bidirectional_mix_backward")
def _(dout, *arguments):
    *tensors, _, _, _ = arguments
    return [dout.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors]


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.average, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:], output[0])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gradients):
    # Read once: gradient checkpointing does not allow a second read.
    all_saved = ctx.saved_tensors
    tensors, saved = all_saved[:15], all_saved[15:]
    if needs_reference(gradients[0]):
        found = reference_gradients(partial(_reference, average=ctx.average), tensors, gradients[:1])
        return *found, None, None, None
    run = torch.ops.mambar.bidirectional_mix_backward
    found = run(gradients[0], *tensors, list(saved), ctx.average, ctx.backend)
    return *(None if t is None else g for t, g in zip(tensors, found, strict=True)), None, None, None


def _reference(*tensors, average):
    return reference.bidirectional_mix(*_unpacked(tensors), average=average)


torch.library.register_autograd("mambar::bidirectional_mix", _differentiate, setup_context=_keep_for_backward)
