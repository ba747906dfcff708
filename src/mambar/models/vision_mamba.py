"""The model: an image becomes tokens, tokens pass blocks, a head reads the registers."""

import re
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambar.data.transforms.classification import Preprocessing
from mambar.errors import InputError
from mambar.models.config import VisionMambaConfig
from mambar.models.protocol import TokenTensor
from mambar.nn import init
from mambar.nn.block import MambaBlock, chain
from mambar.nn.heads import Head
from mambar.nn.mixer import MambaMixer
from mambar.nn.norm import RMSNorm
from mambar.nn.patch_embed import PatchEmbed
from mambar.nn.position_embed import PositionEmbed, resize_positions
from mambar.nn.registers import RegisterTokens, Tokens, split_tokens


class VisionMamba(nn.Module):
    """Vision Mamba with register tokens (Mamba-R, arXiv 2405.14858); with one middle register it is Vim.

    Takes images (batch, channels, height, width) of any size that holds a patch; positions are resized to the
    grid. Keeps timm's model contract (`forward_features`, `forward_head`, `reset_classifier`,
    `forward_intermediates`, …). A loaded model carries its class names and preprocessing in `classes` and
    `preprocessing`.
    """

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.pretrained_cfg: dict[str, Any] = {}
        self.default_cfg = self.pretrained_cfg
        self._traits: dict[str, Any] = {}
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim)
        self.pos_embed = PositionEmbed(config.embed_dim, config.grid)
        self.registers = RegisterTokens(config.embed_dim, config.num_registers, config.placement)
        self.blocks = nn.ModuleList(self._block(rate) for rate in drop_path_rates(config))
        self.norm = RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.head = Head(
            config.head,
            embed_dim=config.embed_dim,
            num_registers=config.num_registers,
            register_reduction=config.register_reduction,
            num_classes=config.num_classes,
            drop_rate=config.drop_rate,
        )
        self.init_weights()

    def _block(self, drop_path: float) -> MambaBlock:
        config = self.config
        mixer = MambaMixer(
            config.embed_dim,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            dt_rank=config.effective_dt_rank,
            proj_bias=config.proj_bias,
            conv_bias=config.conv_bias,
            average_directions=config.average_directions,
        )
        return MambaBlock(
            config.embed_dim, mixer, drop_path=drop_path, proj_drop=config.proj_drop_rate, norm_eps=config.norm_eps
        )

    def init_weights(self) -> None:
        """Draws fresh start values (see `mambar.nn.init`); the constructor has done it already."""
        init.init_patch_embed(self.patch_embed)
        init.init_tokens(self.pos_embed)
        init.init_tokens(self.registers)
        for block in self.blocks:
            assert isinstance(block, MambaBlock)
            init.init_mixer(
                block.mixer,
                depth=self.config.depth,
                official_backward_bias=self.config.official_backward_bias,
            )
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    # What the model is

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels."""
        return self.config.patch_size

    @property
    def embed_dim(self) -> int:
        """The width of a token."""
        return self.config.embed_dim

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 where `forward` gives features."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """The width of what `forward_features` gives, as in timm."""
        return self.config.embed_dim

    @property
    def head_hidden_size(self) -> int:
        """The width of what the classifier reads; for the register head it differs from `num_features`."""
        return self.head.num_features

    @property
    def in_chans(self) -> int:
        """timm's name of the configuration's `in_channels`."""
        return self.config.in_chans

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What timm's feature extraction asks of each block: channels, stride in pixels, module name."""
        return [
            {"num_chs": self.embed_dim, "reduction": self.patch_size, "module": f"blocks.{index}"}
            for index in range(self.num_layers)
        ]

    # From images to logits

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch length dim"], tuple[int, int]]:
        """The token sequence in front of the first block, in at least float32, and its patch grid."""
        grid = self.patch_embed.grid(images)
        patches = self.pos_embed(self.patch_embed(images), grid)
        return self.registers(patches), grid

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch length dim"]:
        """All tokens after the final norm, in sequence order (patches and registers interleaved)."""
        x, _ = self.embed(images)
        unwatched = self._unwatched(x)
        if unwatched:
            return self.norm(chain(unwatched, x))
        for block in self.blocks:
            x = self._through(block, x)
        return self.norm(x)

    def _unwatched(self, x: Tensor) -> list[MambaBlock]:
        """The blocks, where nobody needs them to be called one by one; none for checkpointing and tracing."""
        if (self.grad_checkpointing and self.training) or not isinstance(x, Tensor):
            return []
        blocks = [
            block
            for block in self.blocks
            if type(block) is MambaBlock and type(block.norm) is RMSNorm and not block.watched
        ]
        return blocks if len(blocks) == self.num_layers else []

    def forward_head(
        self,
        tokens: Float[Tensor, "batch length dim"],
        pre_logits: bool = False,
        *,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Logits from what `forward_features` gave; `pre_logits`: the features in front of the classifier."""
        # The function behind `registers.split`: symbolic tracing keeps a function whole, a method it enters.
        taken_apart = split_tokens(tokens, self.registers.placement, self.registers.num_registers, grid)
        return self.head.features(taken_apart) if pre_logits else self.head(taken_apart)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))

    # Looking inside

    def tokens(
        self,
        images: Float[Tensor, "batch channels height width"],
        layers: Sequence[int] | None = None,
        *,
        tensor: TokenTensor = "residual",
    ) -> list[Tokens]:
        """The tokens of the given layers, patches and registers apart.

        Layer k is the stream after block k, counted from 0 (negative: from the end; None: all); `residual` is
        that stream, `mixer` what the block's mixer adds to it before stochastic depth, `normed` the stream
        through the final norm. Only the blocks that are needed run.
        """
        wanted = self._layer_indices(layers)
        if tensor not in ("residual", "mixer", "normed"):
            raise InputError(f"tensor={tensor!r} is not known; choose residual, mixer or normed.")
        x, grid = self.embed(images)
        found: dict[int, Tokens] = {}
        for index in range(max(wanted, default=-1) + 1):
            block = self.blocks[index]
            assert isinstance(block, MambaBlock)
            if tensor == "mixer" and index in wanted:
                added = block.branch(x)
                found[index] = self.registers.split(added, grid)
                x = x + block.drop_path(added)
                continue
            x = self._through(block, x)
            if index in wanted:
                seen = self.norm(x) if tensor == "normed" else x
                found[index] = self.registers.split(seen, grid)
        return [found[index] for index in wanted]

    def _layer_indices(self, layers: Sequence[int] | None) -> list[int]:
        count = self.num_layers
        if layers is None:
            return list(range(count))
        for layer in layers:
            if not -count <= layer < count:
                raise InputError(f"layer {layer} does not exist; the model has layers 0 to {count - 1}.")
        return [layer % count for layer in layers]

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch channels height width"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]] | dict[str, Any]:
        """timm's `forward_intermediates`: patch tokens of some layers as maps, beside the final tokens.

        indices: the last k layers, a list, or None for all; given in ascending order. `return_prefix_tokens`
        adds the registers to each. output_fmt: NCHW or NLC.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt={output_fmt!r} is not known; choose NCHW or NLC.")
        wanted = sorted(set(self._take(indices)))
        tokens, grid = self.embed(x)
        intermediates: list[Any] = []
        last = wanted[-1] if stop_early and wanted else self.num_layers - 1
        for index in range(last + 1):
            tokens = self._through(self.blocks[index], tokens)
            if index in wanted:
                apart = self.registers.split(self.norm(tokens) if norm else tokens, grid)
                seen = apart.map() if output_fmt == "NCHW" else apart.patches
                intermediates.append((seen, apart.registers) if return_prefix_tokens else seen)
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": intermediates}
            if not intermediates_only:
                result["image_features"] = self.norm(tokens)
            return result
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        if isinstance(indices, int):
            if not 0 < indices <= self.num_layers:
                raise InputError(f"indices={indices} must lie between 1 and the {self.num_layers} layers.")
            return list(range(self.num_layers - indices, self.num_layers))
        return self._layer_indices(indices)

    # timm's contract

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Takes away the blocks behind the last one asked for, and the head; gives the indices back.

        Without a head `forward` gives the mean of the patches, which leaves no parameter without gradient.
        """
        wanted = self._take(indices)
        self.blocks = self.blocks[: max(wanted) + 1]
        self.config = self.config.replace(depth=len(self.blocks))
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "avg")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The linear layer that gives logits, or an identity."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one for `num_classes`; 0 takes it away.

        `global_pool`, where given, is a key of `mambar.nn.HEADS` and replaces the read-out as well.
        """
        head = self.config.head if global_pool is None else global_pool
        config = self.config.replace(num_classes=num_classes, head=head)
        if config.head != self.config.head:
            like = self.pos_embed.weight
            self.head = Head(
                config.head,
                embed_dim=config.embed_dim,
                num_registers=config.num_registers,
                register_reduction=config.register_reduction,
                num_classes=num_classes,
                drop_rate=config.drop_rate,
            ).to(device=like.device, dtype=like.dtype)
        else:
            self.head.reset(num_classes)
        self.config = config

    def no_weight_decay(self) -> set[str]:
        """The names the released models exempt from weight decay: positions and registers."""
        return {"pos_embed.weight", "registers.embedding", "registers.position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameter names into layers, for layer-wise learning-rate decay."""
        return {
            "stem": r"^patch_embed|^pos_embed|^registers",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping what it needs."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Gives the position table the grid of another image size (resized, see `nn.position_embed`)."""
        if patch_size is not None and patch_size != self.config.patch_size:
            raise InputError(f"patch_size={patch_size}: the patch size of a built model stays {self.patch_size}.")
        if img_size is None:
            return
        config = self.config.replace(img_size=img_size)
        resized = resize_positions(self.pos_embed.weight.detach(), self.pos_embed.grid, config.grid)
        self.pos_embed.weight = nn.Parameter(resized, requires_grad=self.pos_embed.weight.requires_grad)
        self.pos_embed.grid = config.grid
        self.config = config
        # timm keeps the present input size of a model here and writes it into what it saves.
        self._traits = {**self._traits, "img_size": config.size}


def drop_path_rates(config: VisionMambaConfig) -> list[float]:
    """The rate of each block's output: linear from 0 to `drop_path`."""
    last = max(config.depth - 1, 1)
    return [config.drop_path_rate * index / last for index in range(config.depth)]


def layer_of(name: str, num_layers: int) -> int:
    """The depth of a parameter for layer-wise decay: 0 stem, k+1 block k, num_layers+1 norm and head."""
    found = re.match(r"blocks\.(\d+)\.", name)
    if found:
        return int(found.group(1)) + 1
    return 0 if re.match(r"patch_embed|pos_embed|registers", name) else num_layers + 1
