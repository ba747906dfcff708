"""The two-way mix: checks, the table of backends, and the op that fused kernels stand behind.

A kernel backend is a module with three functions on plain tensors:

    empty_saved(xz, forward_params, backward_params) -> list[Tensor]
    forward(xz, forward_params, backward_params, *, average, for_backward) -> (out, saved)
    backward(dout, xz, forward_params, backward_params, saved, *, average) -> (dxz, dforward, dbackward)

In `backward`, `saved` ends with one more, the output, which the network holds anyway. `empty_saved` gives the
new tensors that `forward` fills for `backward`; it looks at shapes and types only. xz has its channels beside
each other; `x_proj` and `dt_proj` come in the type of xz, the other parameters in float32. Gradients have the
type of what they belong to, None for a missing bias. Outputs are new and contiguous.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mambar.deprecated import accept_old_names
from mambar.errors import InputError
from mambar.ops.bidirectional_mix import reference
from mambar.ops.bidirectional_mix.direction import ScanDirection as ScanDirection
from mambar.ops.checks import (
    FLOATS,
    KERNEL_FLOATS,
    as_dtype,
    autocast_dtype,
    check_decay,
    check_device,
    check_shape,
    compute_dtype,
    rows,
)
from mambar.ops.cuda.program import missing as cuda_missing
from mambar.ops.dispatch import Backend, kernel, mode, resolve

BACKENDS = (
    Backend(
        name="cuda",
        module="mambar.ops.bidirectional_mix.cuda",
        devices=("cuda",),
        dtypes=KERNEL_FLOATS,
        requires=(cuda_missing, "triton"),
        kernel=True,
    ),
    Backend(
        name="llvm",
        module="mambar.ops.bidirectional_mix.llvm",
        devices=("cpu",),
        dtypes=KERNEL_FLOATS,
        requires=("llvmlite",),
        kernel=True,
    ),
    Backend(name="reference", module="mambar.ops.bidirectional_mix.reference", dtypes=FLOATS, traceable=True),
)


@accept_old_names({"ahead": "forward_params", "behind": "backward_params"})
def bidirectional_mix(
    xz: Float[Tensor, "batch length two_inner"],
    forward_params: ScanDirection,
    backward_params: ScanDirection,
    *,
    average: bool = True,
    backend: str = "auto",
) -> Float[Tensor, "batch length inner"]:
    """What the vision mixer computes between its projections; `xz` is x, then the gate z, beside each other.

    Each direction: causal convolution and SiLU, projection to step size, B and C, then the scan with
    softplus, skip and gate; `backward_params` walks from the last token to the first. The result is the sum of both,
    halved if `average` as in Mamba-R (arXiv 2405.14858), where Vim's first code summed. Under autocast the
    projections run in its type; state, softplus and gate stay float32. `backend="reference"` composes the
    other ops, which choose for themselves.
    """
    _check(xz, forward_params, backward_params)
    dtype = _linear_dtype(xz)
    name = resolve("bidirectional_mix", backend, device=xz.device, dtype=dtype, otherwise="reference")
    if name == "reference":
        return reference.bidirectional_mix(xz, forward_params, backward_params, average=average)
    if mode() == "eager" and xz.numel() == 0:
        return xz.chunk(2, dim=-1)[0] + 0
    tensors = (as_dtype(xz, dtype), *_typed(forward_params, dtype), *_typed(backward_params, dtype))
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, *_ = torch.ops.mambar.bidirectional_mix(*tensors, average, learns, name)
    return out


def _check(xz: Tensor, forward_params: ScanDirection, backward_params: ScanDirection) -> None:
    check_shape("xz", xz, batch=None, length=None, two_inner=None)
    if xz.shape[2] % 2:
        raise InputError(f"xz has {xz.shape[2]} channels; it needs an even number: x, then the gate z.")
    inner = xz.shape[2] // 2
    for name, way in (("forward_params", forward_params), ("backward_params", backward_params)):
        rank, state = way.sizes
        check_shape(f"{name}.conv_weight", way.conv_weight, inner=inner, taps=None)
        check_shape(f"{name}.conv_bias", way.conv_bias, inner=inner)
        check_shape(f"{name}.x_proj", way.x_proj, rank_and_states=rank + 2 * state, inner=inner)
        check_shape(f"{name}.dt_proj", way.dt_proj, inner=inner, rank=rank)
        check_shape(f"{name}.dt_bias", way.dt_bias, inner=inner)
        check_shape(f"{name}.A", way.A, inner=inner, state=state)
        check_shape(f"{name}.D", way.D, inner=inner)
        check_decay(way.A)
        check_device(xz=xz, **{f"{name}.{field}": tensor for field, tensor in way._asdict().items()})


def _linear_dtype(xz: Tensor) -> torch.dtype:
    return xz.dtype if xz.dtype == torch.float64 else autocast_dtype(xz.device.type) or xz.dtype


def _typed(way: ScanDirection, dtype: torch.dtype) -> ScanDirection:
    wide = compute_dtype(way.A) if dtype != torch.float64 else dtype
    kinds = {"x_proj": dtype, "dt_proj": dtype}
    return ScanDirection(*(as_dtype(tensor, kinds.get(name, wide)) for name, tensor in way._asdict().items()))


# The op: one opaque node of a graph, with the backend's name as a constant.

_WAY = (
    "Tensor conv_weight{0}, Tensor? conv_bias{0}, Tensor x_proj{0}, Tensor dt_proj{0}, "
    "Tensor dt_bias{0}, Tensor A{0}, Tensor D{0}"
)
_ARGUMENTS = f"Tensor xz, {_WAY.format(1)}, {_WAY.format(2)}"
torch.library.define(
    "mambar::bidirectional_mix", f"({_ARGUMENTS}, bool average, bool for_backward, str backend) -> Tensor[]"
)
torch.library.define(
    "mambar::bidirectional_mix_backward",
    f"(Tensor dout, {_ARGUMENTS}, Tensor[] saved, bool average, str backend) -> Tensor[]",
)


def _unpacked(tensors: Sequence[Any]) -> tuple[Tensor, ScanDirection, ScanDirection]:
    xz, *ways = tensors
    return xz, ScanDirection(*ways[:7]), ScanDirection(*ways[7:14])


def _laid_out(tensors: Sequence[Any]) -> tuple[Tensor, ScanDirection, ScanDirection]:
    xz, *parameters = tensors
    return _unpacked((rows(xz), *(None if t is None else t.contiguous() for t in parameters)))


@torch.library.impl("mambar::bidirectional_mix", "CompositeExplicitAutograd")
def _forward(*arguments):
    *tensors, average, for_backward, backend = arguments
    run = kernel("bidirectional_mix", backend).forward
    out, saved = run(*_laid_out(tensors), average=average, for_backward=for_backward)
    return [out, *saved]


@torch.library.register_fake("mambar::bidirectional_mix")
def _(*arguments):
    *tensors, _, for_backward, backend = arguments
    xz, forward_params, backward_params = _unpacked(tensors)
    out = xz.new_empty(xz.shape[0], xz.shape[1], xz.shape[2] // 2)
    return [
        out,
        *(
            kernel("bidirectional_mix", backend).empty_saved(xz, forward_params, backward_params)
            if for_backward
            else []
        ),
    ]


@torch.library.impl("mambar::bidirectional_mix_backward", "CompositeExplicitAutograd")
def _backward(dout, *arguments):
    *tensors, saved, average, backend = arguments
    run = kernel("bidirectional_mix", backend).backward
    dxz, dforward, dbackward = run(rows(dout), *_laid_out(tensors), saved, average=average)
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
    # Asked for once: gradient checkpointing allows no second time.
    everything = ctx.saved_tensors
    tensors, saved = everything[:15], everything[15:]
    run = torch.ops.mambar.bidirectional_mix_backward
    found = run(gradients[0], *tensors, list(saved), ctx.average, ctx.backend)
    return *(None if t is None else g for t, g in zip(tensors, found, strict=True)), None, None, None


torch.library.register_autograd("mambar::bidirectional_mix", _differentiate, setup_context=_keep_for_backward)
