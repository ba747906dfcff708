"""The blocks of a model on a CPU without gradients: the same kernels, with checks for all blocks in front.

A check, a module call or a lookup takes a few microseconds, and three to five times as long while the activations of a
model push Python's own data out of the cache. For one image of the Tiny model they took as long as the products. Here
a block is nine calls: norm, products, convolutions, scans.

Nothing is kept between calls. A module that is replaced, hooked or compiled in place is called as usual: then
`inference_weights` returns None.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from mambar import ops
from mambar.nn.block import DropPath
from mambar.nn.mixer import DirectionalScan, MambaMixer
from mambar.ops.checks import autocast_dtype
from mambar.ops.dispatch import mode, resolve


class BlockWeights(NamedTuple):
    """The tensors of a block; A of both directions is A_log."""

    norm: Tensor
    eps: float
    in_proj: tuple[Tensor, Tensor | None]
    forward_params: ops.ScanDirection
    backward_params: ops.ScanDirection
    average: bool
    out_proj: tuple[Tensor, Tensor | None]


def inference_weights(blocks: Iterable[nn.Module], x: Tensor) -> list[BlockWeights] | None:
    """The weights of blocks that satisfy `can_fuse`, or None if a block or the call needs more than the kernels."""
    plain_call = (
        x.is_cpu
        and x.dtype == torch.float32
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and mode() == "eager"
        and torch._C._len_torch_dispatch_stack() == 0  # type: ignore[attr-defined]
        and autocast_dtype("cpu") is None
        and not _has_any_global_hook()
    )
    if not plain_call:
        return None
    types = {"device": x.device, "dtype": x.dtype}
    if resolve("bidirectional_mix", "auto", **types, otherwise="composed") != "llvm":
        return None
    if resolve("rms_norm", "auto", **types) != "inference":
        return None
    weights = []
    for block in blocks:
        found = _block_weights(block, x.shape[2])
        if found is None:
            return None
        weights.append(found)
    return weights


def infer(weights: Sequence[BlockWeights], x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
    """The stream after the last block."""
    from mambar.ops.bidirectional_mix import llvm as mix
    from mambar.ops.rms_norm import llvm as norm

    branch = None
    for block in weights:
        normed, x = norm.normalize(x, branch, block.norm, eps=block.eps)
        xz = functional.linear(normed, *block.in_proj)
        mixed = mix.infer(xz, block.forward_params, block.backward_params, average=block.average)
        branch = functional.linear(mixed, *block.out_proj)
    return x if branch is None else x + branch


def _block_weights(block: nn.Module, dim: int) -> BlockWeights | None:
    # Looked up in the dictionaries: nn.Module's attributes take as long as a small operator.
    parts: dict[str, Any] = block._modules
    norm, mixer, proj_drop, drop_path = parts["norm"], parts["mixer"], parts["proj_drop"], parts["drop_path"]
    if not (_is_plain(mixer, MambaMixer) and _is_plain(proj_drop, nn.Dropout) and _is_plain(drop_path, DropPath)):
        return None
    if proj_drop.training or drop_path.training:
        return None
    in_proj, out_proj = _linear(mixer, "in_proj"), _linear(mixer, "out_proj")
    forward, backward = _direction(mixer._modules["forward_scan"]), _direction(mixer._modules["backward_scan"])
    if in_proj is None or out_proj is None or forward is None or backward is None:
        return None
    weight, inner = norm._parameters["weight"], forward.D.numel()
    fits = (
        _fits(weight, dim)
        and _fits(in_proj[0], 2 * inner, dim)
        and (in_proj[1] is None or _fits(in_proj[1], 2 * inner))
        and _fits(out_proj[0], dim, inner)
        and (out_proj[1] is None or _fits(out_proj[1], dim))
        and backward.D.numel() == inner
    )
    return (
        BlockWeights(weight, norm.eps, in_proj, forward, backward, mixer.average_directions, out_proj) if fits else None
    )


def _direction(scan: Any) -> ops.ScanDirection | None:
    if not (_is_plain(scan, DirectionalScan) and _linear(scan, "x_proj") and _linear(scan, "dt_proj")):
        return None
    params = scan.log_weights()
    if scan._modules["x_proj"]._parameters["bias"] is not None or params.dt_bias is None:
        return None
    if not params.conv_weight.dim() == params.dt_proj.dim() == params.A.dim() == 2:
        return None
    (rank, state), inner, taps = params.sizes, params.D.numel(), params.conv_weight.shape[1]
    fits = (
        _fits(params.conv_weight, inner, taps)
        and (params.conv_bias is None or _fits(params.conv_bias, inner))
        and _fits(params.x_proj, rank + 2 * state, inner)
        and _fits(params.dt_proj, inner, rank)
        and _fits(params.dt_bias, inner)
        and _fits(params.A, inner, state)
        and _fits(params.D, inner)
    )
    return params if fits else None


def _linear(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None] | None:
    linear: Any = module._modules[name]
    return (linear._parameters["weight"], linear._parameters["bias"]) if _is_plain(linear, nn.Linear) else None


def _is_plain(module: Any, kind: type) -> bool:
    """As `has_hooks`, without what concerns all modules."""
    own = vars(module)
    return type(module) is kind and not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
    )


def _fits(tensor: Any, *shape: int) -> bool:
    """True for a contiguous float32 tensor of this shape on the CPU, not of a subclass."""
    return (
        tensor.shape == shape
        and 0 not in shape
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and type(tensor) in (nn.Parameter, Tensor)
        and tensor.is_contiguous()
    )
