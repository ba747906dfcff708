"""The fast path: blocks without their own residual sums, tokens split by index, and the tests for its use.

Numerically equal to calling the blocks one after the other and to slicing. A module that is replaced, hooked,
parametrized or compiled in place is never bypassed: see `can_fuse` and `is_plain_linear`.
"""

import functools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mambar.nn.block import MambaBlock
from mambar.nn.norm import RMSNorm
from mambar.nn.placement import Grid
from mambar.ops.dispatch import mode


def fused_forward(
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "batch length dim"],
    grid: Grid | None = None,
    positions: Sequence[int] = (),
) -> Float[Tensor, "batch length dim"]:
    """The stream after the last block, for blocks that satisfy `can_fuse`.

    A block's residual sum is computed by the norm of the next block, in one pass over memory, as the released code
    does. The blocks' own `forward` is not called.
    """
    branch: Tensor | None = None
    for block in blocks:
        assert isinstance(block, MambaBlock)
        normed, x = (block.norm(x), x) if branch is None else block.norm.add(x, branch)
        branch = block.drop_path(block.proj_drop(block.mixer(normed, grid, positions)))
    return x if branch is None else x + branch


def can_fuse(blocks: Iterable[nn.Module], x: Tensor) -> bool:
    """True if no call of a block or its norm can be observed; False while torch.fx traces symbolically."""
    return isinstance(x, Tensor) and all(
        type(block) is MambaBlock and type(block.norm) is RMSNorm and not has_hooks(block) and not has_hooks(block.norm)
        for block in blocks
    )


def has_hooks(module: nn.Module) -> bool:
    """True if calling the module does more than its class's `forward`: hooks, another `forward`, a compiled call."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or torch.compiler.is_compiling():
        return bool(hooks)
    # `module.compile()`, tools that replace `forward` on the instance, hooks registered for all modules.
    return bool(module._compiled_call_impl or "forward" in vars(module) or _has_any_global_hook())


def is_plain_linear(module: nn.Module) -> bool:
    """True if `module(x)` equals `F.linear(x, module.weight, module.bias)` and nothing observes the call.

    False for subclasses (adapters, parametrizations, quantized layers), hooks (pruning, weight norm) and weights that
    are tensor subclasses (torchao).
    """
    return is_plain(module, nn.Linear)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a call of the module does what the class `kind` itself does with its parameters."""
    return type(module) is kind and are_plain_tensors(module) and not has_hooks(module)


def are_plain_tensors(module: nn.Module) -> bool:
    """True if none of the module's own parameters is a tensor subclass."""
    return all(type(each) in (nn.Parameter, Tensor) for each in module._parameters.values() if each is not None)


def split_sequence(
    tokens: Float[Tensor, "batch length dim"], positions: Sequence[int]
) -> tuple[Float[Tensor, "batch patches dim"], Float[Tensor, "batch registers dim"]]:
    """The patches and the registers of a sequence with registers at `positions`.

    With gradients: slices, whose backward pass adds in a fixed order and therefore gives the same bits in every run.
    Without: two `index_select` calls instead of two for each register. Not while a CUDA graph is captured, which would
    read the cached index's memory as long as it lives.
    """
    eager = type(tokens) is Tensor and mode() == "eager" and not torch.is_grad_enabled()
    if positions and eager and not (tokens.is_cuda and torch.cuda.is_current_stream_capturing()):
        patch_index, register_index = _indices(tuple(positions), tokens.shape[1], tokens.device)
        return tokens.index_select(1, patch_index), tokens.index_select(1, register_index)
    patches, registers, start = [], [], 0
    for position in positions:
        patches.append(tokens[:, start:position])
        registers.append(tokens[:, position : position + 1])
        start = position + 1
    patches.append(tokens[:, start:])
    return torch.cat(patches, dim=1), torch.cat(registers, dim=1) if registers else tokens[:, :0]


def join_sequence(
    patches: Float[Tensor, "batch patches dim"],
    registers: Float[Tensor, "batch registers dim"],
    positions: Sequence[int],
) -> Float[Tensor, "batch length dim"]:
    """The inverse of `split_sequence`."""
    pieces, start = [], 0
    for index, position in enumerate(positions):
        in_front = position - index
        pieces += [patches[:, start:in_front], registers[:, index : index + 1]]
        start = in_front
    return torch.cat([*pieces, patches[:, start:]], dim=1)  # (B, M+n, D)


@functools.lru_cache(maxsize=64)
def _indices(positions: tuple[int, ...], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions of the patches and of the registers in the sequence."""
    patches = sorted(set(range(length)) - set(positions))
    return torch.tensor(patches, device=device), torch.tensor(positions, device=device)
