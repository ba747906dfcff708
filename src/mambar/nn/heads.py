"""Heads: modules that reduce the tokens to one feature vector, their table, and the classifier.

A head is built as `HEADS[name](embed_dim, num_registers, register_reduction)` and called with `Tokens`. It returns
features (batch, num_features) and has the width as attribute `num_features`. Register your own class with
`HEADS["name"] = Class`; it needs no base class.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.nn.init import init_linears
from mambar.nn.norm import RMSNorm
from mambar.nn.registers import Tokens


def _need_registers(head: str, num_registers: int) -> None:
    if num_registers < 1:
        raise InputError(f"head={head!r} needs num_registers >= 1; got 0. Choose head='avg' instead.")


class RegisterHead(nn.Module):
    """Register head of the paper (`registers`): a shared linear map of every register, concatenated and normalized.

    D → D/r without bias, n·(D/r) features in register order, RMS norm (eps 1e-5). For r = 1 there is neither
    the map nor the norm (arXiv 2405.14858; golden cases `mambar_*`).
    """

    def __init__(self, embed_dim: int, num_registers: int, register_reduction: int) -> None:
        super().__init__()
        _need_registers("registers", num_registers)
        if embed_dim % register_reduction:
            raise InputError(
                f"register_reduction={register_reduction} must divide embed_dim={embed_dim}; choose a divisor."
            )
        reduced = embed_dim // register_reduction
        self.num_features = num_registers * reduced
        self.reduce = nn.Linear(embed_dim, reduced, bias=False) if register_reduction > 1 else nn.Identity()
        self.norm = RMSNorm(self.num_features) if register_reduction > 1 else nn.Identity()

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch features"]:
        return self.norm(self.reduce(tokens.registers).flatten(1))


class WidenedHead(nn.Module):
    """The first register through a linear map to three times its width, and an RMS norm with eps 1e-5 (`widened`).

    A control with as many features as 12 registers at r = 4. arXiv 2405.14858 reports Vim with its output widened from
    768 to 2304 features and does not describe the layer; this is the layer of the register head.
    """

    FACTOR = 3

    def __init__(self, embed_dim: int, num_registers: int, register_reduction: int) -> None:
        super().__init__()
        _need_registers("widened", num_registers)
        self.num_features = self.FACTOR * embed_dim
        self.widen = nn.Linear(embed_dim, self.num_features, bias=False)
        self.norm = RMSNorm(self.num_features)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch features"]:
        return self.norm(self.widen(tokens.registers[:, 0]))


# The pooled heads: tokens to one vector of their width.
POOLINGS: dict[str, Callable[[Tokens], Tensor]] = {
    "register_mean": lambda tokens: tokens.registers.mean(1),
    "token": lambda tokens: tokens.registers[:, 0],
    "avg": lambda tokens: tokens.patches.mean(1),
    "avg_all": lambda tokens: torch.cat([tokens.patches, tokens.registers], dim=1).mean(1),
}


class PooledHead(nn.Module):
    """A head without parameters, `pooling` of `POOLINGS`.

    `register_mean`: mean of all registers. `token`: the first register; with n = 1 it is Vim's class token.
    `avg`: mean of all patch tokens. `avg_all`: mean over patches and registers.
    """

    def __init__(self, pooling: str, embed_dim: int, num_registers: int, register_reduction: int) -> None:
        super().__init__()
        if pooling in ("register_mean", "token"):
            _need_registers(pooling, num_registers)
        self.pooling, self.num_features = pooling, embed_dim

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch features"]:
        return POOLINGS[self.pooling](tokens)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "registers": RegisterHead,
    "widened": WidenedHead,
    **{pooling: functools.partial(PooledHead, pooling) for pooling in POOLINGS},
}


class Unpooled(nn.Identity):
    """No read-out (timm's name for it is an empty string): the classifier is applied to each token of the sequence."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.num_features = embed_dim


class Head(nn.Module):
    """A module of `HEADS`, dropout and a linear classifier; returns the features if `num_classes` is 0.

    With the name "" it takes and returns the sequence of tokens (batch, length, embed_dim) instead of `Tokens`.
    """

    def __init__(
        self,
        name: str,
        *,
        embed_dim: int,
        num_registers: int,
        register_reduction: int,
        num_classes: int,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if name and name not in HEADS:
            raise InputError(f"head={name!r} is not known; choose one of {', '.join(HEADS)}.")
        self.read_out = HEADS[name](embed_dim, num_registers, register_reduction) if name else Unpooled(embed_dim)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier: nn.Linear | nn.Identity = nn.Identity()
        self.reset(num_classes)

    @property
    def num_features(self) -> int:
        """The width of the classifier's input."""
        return int(self.read_out.num_features)  # pyright: ignore[reportArgumentType]

    def reset(self, num_classes: int) -> None:
        """Replaces the classifier by a new one for `num_classes`; 0 removes it."""
        if num_classes < 1:
            self.classifier = nn.Identity()
            return
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the classifier: weight truncated normal of standard deviation 0.02, bias 0."""
        init_linears(self.classifier)

    def features(self, tokens: Tokens | Tensor) -> Float[Tensor, "batch *length features"]:
        """The input of the classifier: one vector per image."""
        return self.read_out(tokens)

    def forward(self, tokens: Tokens | Tensor) -> Float[Tensor, "batch *length classes"]:
        return self.classifier(self.dropout(self.read_out(tokens)))
