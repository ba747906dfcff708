"""One residual block: normalise, mix, add."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mambar.nn.mixer import MambaMixer
from mambar.nn.norm import RMSNorm


class DropPath(nn.Module):
    """Stochastic depth: drops a whole branch for each image with probability `drop_prob`, scales the rest up."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def keep(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch 1 1"]:
        """Draws 1 (keep) or 0 (drop) for each image from torch's generator of the device."""
        return torch.empty(branch.shape[0], 1, 1, device=branch.device).bernoulli_(1 - self.drop_prob)

    def forward(self, branch: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        if not self.training or self.drop_prob == 0:
            return branch
        return branch * (self.keep(branch).to(branch.dtype) / (1 - self.drop_prob))

    def extra_repr(self) -> str:
        """The probability, for `print(model)`."""
        return f"drop_prob={self.drop_prob:.4g}"


class MambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), the residual stream x in at least float32.

    The released code computes the numerically equal chain add → norm → mixer, which reads the stream once less: see
    `chain`.
    """

    def __init__(
        self,
        embed_dim: int,
        mixer: MambaMixer,
        *,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(embed_dim, eps=norm_eps)
        self.mixer = mixer
        self.proj_drop = nn.Dropout(proj_drop)
        self.drop_path = DropPath(drop_path)

    def branch(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """What the mixer adds to the stream, before stochastic depth."""
        return self.proj_drop(self.mixer(self.norm(x)))

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        return x + self.drop_path(self.branch(x))

    @property
    def watched(self) -> bool:
        """Whether somebody waits for calls of this block or its norm: by a hook, or with a function in their place."""
        return any(_watched(module) for module in (self, self.norm))


def _watched(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or torch.compiler.is_compiling():
        return bool(hooks)
    # `module.compile()`, tools that put their own `forward` before a module's, hooks on all modules there are.
    return bool(module._compiled_call_impl or "forward" in vars(module) or _has_any_global_hook())


def chain(blocks: Iterable[MambaBlock], x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
    """The stream behind the last block, as from the blocks one after the other.

    Each block's sum is left to the norm of the next, which finds both in one pass over memory. No block is called, so
    none of them may be `watched`.
    """
    branch: Tensor | None = None
    for block in blocks:
        normed, x = (block.norm(x), x) if branch is None else block.norm.add(x, branch)
        branch = block.drop_path(block.proj_drop(block.mixer(normed)))
    return x if branch is None else x + branch
