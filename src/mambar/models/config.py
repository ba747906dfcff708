"""The configuration of a model, and the table of published variants."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mambar.deprecated import MODEL_FIELDS, MODEL_VALUES, accept_old_names, translate, translate_arguments
from mambar.errors import InputError, UnknownFieldError
from mambar.json_fields import check_names, to_json_fields
from mambar.messages import did_you_mean, short_repr
from mambar.nn.heads import HEADS
from mambar.nn.mixer import MIXERS
from mambar.nn.placement import PLACEMENTS


@accept_old_names(MODEL_FIELDS, MODEL_VALUES)
@dataclass(frozen=True, kw_only=True)
class VisionMambaConfig:
    """The configuration of a `VisionMamba`; invalid values raise `InputError`.

    Attributes:
        img_size: image size in pixels, one number for squares or (height, width); sets the grid of the position table.
        patch_size: side of a patch in pixels.
        in_chans: number of image channels.
        embed_dim: width of a token.
        depth: number of blocks.
        num_registers: number of register tokens.
        register_reduction: factor by which the register head reduces the width of each register.
        num_classes: number of logits; 0 builds no classifier.
        d_state: state size of the selective scan.
        d_conv: kernel width of the causal convolution.
        expand: inner width of the mixer divided by `embed_dim`.
        dt_rank: rank of the step-size projection; None means embed_dim / 16, rounded up.
        mixer: a key of `mambar.nn.MIXERS`.
        placement: a key of `mambar.nn.PLACEMENTS`, the positions of the registers.
        head: a key of `mambar.nn.HEADS`, or "" for unpooled tokens as in timm.
        drop_path_rate: stochastic depth rate of the last block, rising linearly from 0.
        proj_drop_rate: dropout rate of the mixer output.
        drop_rate: dropout rate in front of the classifier.
        norm_eps: eps of the RMS norms.
        proj_bias: add a bias to the input and output projections of the mixer.
        conv_bias: add a bias to the causal convolution.
        average_directions: average the scan directions instead of adding them.
        official_backward_bias: initialize the backward dt bias with 0 as the released code does (`bidirectional` only).
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 192
    depth: int = 24
    num_registers: int = 12
    register_reduction: int = 1
    num_classes: int = 1000
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    mixer: str = "bidirectional"
    placement: str = "evenly"
    head: str = "registers"
    drop_path_rate: float = 0.0
    proj_drop_rate: float = 0.0
    drop_rate: float = 0.0
    norm_eps: float = 1e-5
    proj_bias: bool = False
    conv_bias: bool = True
    average_directions: bool = True
    official_backward_bias: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.img_size, list | tuple):
            object.__setattr__(self, "img_size", tuple(self.img_size))
        sides = self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)
        if len(sides) != 2:
            raise InputError(f"img_size={short_repr(self.img_size)} must be one number of pixels or (height, width).")
        for side in sides:
            _check_count("img_size", side, 1, 1 << 16)
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if value is not None or name != "dt_rank":
                _check_count(name, value, least, most)
        for name in ("drop_path_rate", "proj_drop_rate", "drop_rate"):
            _check_number(name, getattr(self, name), lambda rate: 0 <= rate < 1, "at least 0 and below 1")
        _check_number("norm_eps", self.norm_eps, lambda eps: 0 < eps <= 1, "above 0 and at most 1, usually 1e-5")
        for name in ("proj_bias", "conv_bias", "average_directions", "official_backward_bias"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={short_repr(getattr(self, name))} must be true or false.")
        for name, table in (("mixer", MIXERS), ("placement", PLACEMENTS), ("head", HEADS)):
            value = getattr(self, name)
            if value not in table and (name, value) != ("head", ""):
                raise InputError(f"{name}={short_repr(value)} is not known; choose one of {', '.join(table)}.")
        if self.official_backward_bias and self.mixer != "bidirectional":
            raise InputError(f"official_backward_bias needs mixer='bidirectional'; got mixer={self.mixer!r}.")
        if min(self.grid) < 1:
            raise InputError(
                f"img_size={self.img_size} holds no patch of {self.patch_size} pixels; "
                "use a larger img_size or a smaller patch_size."
            )
        if self.head == "registers" and self.embed_dim % self.register_reduction:
            raise InputError(f"register_reduction={self.register_reduction} must divide embed_dim={self.embed_dim}.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of full patches."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    @property
    def d_inner(self) -> int:
        """Inner width of the mixer."""
        return self.expand * self.embed_dim

    @property
    def effective_dt_rank(self) -> int:
        """`dt_rank`, or its default if that is None."""
        return math.ceil(self.embed_dim / 16) if self.dt_rank is None else self.dt_rank

    def replace(self, **fields: Any) -> "VisionMambaConfig":
        """A copy with changed fields; an unknown field raises `InputError` with the closest name."""
        fields = translate_arguments(fields, MODEL_FIELDS, MODEL_VALUES)
        _known_fields(fields)
        return dataclasses.replace(self, **fields)

    def but(self, **fields: Any) -> "VisionMambaConfig":
        """The name of `replace` in version 0.1."""
        warnings.warn("but() is now replace(); the old name ends with version 0.3.", DeprecationWarning, stacklevel=2)
        return self.replace(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return to_json_fields(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "VisionMambaConfig":
        """The inverse of `to_dict`; an unknown field raises `InputError`."""
        fields = translate(fields, MODEL_FIELDS, MODEL_VALUES)
        _known_fields(fields)
        if isinstance(fields.get("img_size"), list):
            fields["img_size"] = tuple(fields["img_size"])
        return cls(**fields)


# Smallest and largest value of each count: far beyond any published model, below what overflows a size.
_COUNTS = {
    "patch_size": (1, 1 << 12),
    "in_chans": (1, 1 << 12),
    "embed_dim": (1, 1 << 20),
    "depth": (1, 10_000),
    "num_registers": (0, 1 << 20),
    "register_reduction": (1, 1 << 20),
    "num_classes": (0, 1 << 24),
    "d_state": (1, 1 << 16),
    "d_conv": (1, 1 << 10),
    "expand": (1, 1 << 10),
    "dt_rank": (1, 1 << 20),
}


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name}={short_repr(value)} must be a whole number of at least {least}, at most {most}.")


def _check_number(name: str, value: object, allowed: Callable[[float], bool], words: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not allowed(value):
        raise InputError(f"{name}={short_repr(value)} must be {words}.")


def _known_fields(fields: Mapping[str, Any]) -> None:
    known = (field.name for field in dataclasses.fields(VisionMambaConfig))
    check_names(fields, known, what="The model has no field", error=UnknownFieldError)


def _vim(dim: int) -> VisionMambaConfig:
    return VisionMambaConfig(embed_dim=dim, num_registers=1, placement="middle", head="token")


# The sizes of the paper (arXiv 2405.14858), and of Vim, which is the same network with one register in the middle.
VARIANTS: dict[str, VisionMambaConfig] = {
    "mambar_tiny_patch16_224": VisionMambaConfig(embed_dim=192, register_reduction=1),
    "mambar_small_patch16_224": VisionMambaConfig(embed_dim=384, register_reduction=2),
    "mambar_base_patch16_224": VisionMambaConfig(embed_dim=768, register_reduction=4),
    "mambar_large_patch16_224": VisionMambaConfig(embed_dim=1024, depth=48, num_registers=16, register_reduction=8),
    "vim_tiny_patch16_224": _vim(192),
    "vim_small_patch16_224": _vim(384),
    "vim_base_patch16_224": _vim(768),
}


def variant(name: str, *, registered: Iterable[str] = ()) -> VisionMambaConfig:
    """The configuration of a published variant; an unknown name raises `InputError` with the closest one."""
    if name not in VARIANTS:
        hint = did_you_mean(name, [*VARIANTS, *registered], otherwise="`mambar info` lists them.", cutoff=0.4)
        raise InputError(f"There is no model {name!r}; {hint}")
    return VARIANTS[name]
