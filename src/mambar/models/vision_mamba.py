"""Vision Mamba with register tokens: patch embedding, registers, Mamba blocks, final norm, head."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from mambar.data.transforms.classification import Preprocessing
from mambar.errors import InputError
from mambar.models.config import VisionMambaConfig
from mambar.models.protocol import Images, Layers, TokenTensor, layer_indices
from mambar.nn import init
from mambar.nn.block import MambaBlock
from mambar.nn.cpu_inference import infer, inference_weights
from mambar.nn.fused_forward import can_fuse, fused_forward
from mambar.nn.heads import Head
from mambar.nn.mixer import MIXERS
from mambar.nn.norm import RMSNorm
from mambar.nn.patch_embed import PatchEmbed
from mambar.nn.placement import Grid, register_positions
from mambar.nn.position_embed import PositionEmbed, resize_positions
from mambar.nn.registers import RegisterTokens, Tokens, split_tokens

# One node each of a symbolically traced graph: they need numbers of tokens, which are not known while it is traced.
fx.wrap("register_positions")
fx.wrap("split_tokens")


class VisionMamba(nn.Module):
    """Vision Mamba with register tokens (Mamba-R, arXiv 2405.14858); with one middle register it is Vim.

    Takes images (batch, channels, height, width) of any size that holds a patch; positions are resized to the
    grid. Keeps timm's model contract (`forward_features`, `forward_head`, `reset_classifier`,
    `forward_intermediates`, …).

    Attributes:
        config: the configuration; `reset_classifier` and `set_input_size` replace it.
        classes: the class names of a loaded model, else None.
        preprocessing: the preprocessing of a loaded model, else None.
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
        self.head = self._head(config)
        self._init_parameters()

    def _block(self, drop_path: float) -> MambaBlock:
        config = self.config
        mixer = MIXERS[config.mixer](
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

    @staticmethod
    def _head(config: VisionMambaConfig) -> Head:
        return Head(
            config.head,
            embed_dim=config.embed_dim,
            num_registers=config.num_registers,
            register_reduction=config.register_reduction,
            num_classes=config.num_classes,
            drop_rate=config.drop_rate,
        )

    def init_weights(self) -> None:
        """Initializes every parameter, for example after `to_empty` of a model built on the `meta` device.

        With the same random seed the values are those of the constructor.
        """
        init.reset_parameters(self)
        self._init_parameters()

    def _init_parameters(self) -> None:
        init.init_patch_projection(self.patch_embed.proj)
        init.init_tokens(self.pos_embed.parameters())
        init.init_tokens(self.registers.parameters())
        for block in self.blocks:
            assert isinstance(block, MambaBlock)
            block.mixer.init_weights(depth=self.config.depth)
            if self.config.official_backward_bias:
                # In the released code a later hook, inherited from Vim, sets the backward dt bias to 0, so that
                # direction starts with steps near 0.7 instead of 0.001-0.1.
                nn.init.zeros_(block.mixer.backward_scan.dt_proj.bias)
        init.init_linears(self.head)

    # Sizes

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
        """The number of logits; 0 if `forward` returns features."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """The input width of a head that a consumer adds: that of `forward` if there is no classifier.

        With a classifier it is the width of the tokens of `forward_features`, as in timm.
        """
        return self.embed_dim if self.num_classes else self.head.num_features

    @property
    def head_hidden_size(self) -> int:
        """The width of the classifier's input; for the register head it differs from `embed_dim`."""
        return self.head.num_features

    @property
    def in_chans(self) -> int:
        """The number of image channels."""
        return self.config.in_chans

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride in pixels and module name of each block, for timm's feature extraction."""
        return [
            {"num_chs": self.embed_dim, "reduction": self.patch_size, "module": f"blocks.{index}"}
            for index in range(self.num_layers)
        ]

    # From images to logits

    def embed(self, images: Images) -> tuple[Float[Tensor, "batch length dim"], Grid]:
        """The token sequence in front of the first block, in at least float32, and its patch grid.

        To embed with changed patches, for example masked ones, call its three modules and `forward_tokens`:

            grid = model.patch_embed.grid(images)
            patches = model.patch_embed(images)  # (B, M, D), row by row
            patches = torch.where(mask[..., None], mask_token, patches)
            tokens = model.forward_tokens(model.registers(model.pos_embed(patches, grid), grid), grid)
            predicted = model.registers.split(tokens, grid).patches
        """
        grid = self.patch_embed.grid(images)
        patches = self.pos_embed(self.patch_embed(images), grid)
        return self.registers(patches, grid), grid

    def forward_features(self, images: Images) -> Float[Tensor, "batch length dim"]:
        """All tokens after the final norm, in sequence order (patches and registers interleaved)."""
        return self.forward_tokens(*self.embed(images))

    def forward_tokens(
        self, tokens: Float[Tensor, "batch length dim"], grid: Grid
    ) -> Float[Tensor, "batch length dim"]:
        """Embedded tokens after all blocks and the final norm."""
        if can_fuse(self.blocks, tokens) and not (self.grad_checkpointing and self.training):
            weights = inference_weights(self.blocks, tokens)
            if weights is not None:
                return self.norm(infer(weights, tokens))
            return self.norm(fused_forward(self.blocks, tokens, grid, self._positions(tokens, grid)))
        for block in self.blocks:
            tokens = self.run_block(block, tokens, grid)
        return self.norm(tokens)

    def _positions(self, tokens: Tensor, grid: Grid) -> tuple[int, ...]:
        count = self.registers.num_registers
        return register_positions(self.registers.placement, tokens.shape[1] - count, count, grid)

    def run_block(
        self, block: nn.Module, x: Float[Tensor, "batch length dim"], grid: Grid
    ) -> Float[Tensor, "batch length dim"]:
        """The stream after one block, with gradient checkpointing if it is on."""
        positions = self._positions(x, grid)
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, grid, positions, use_reentrant=False)
        return block(x, grid, positions)

    def forward_head(
        self, tokens: Float[Tensor, "batch length dim"], pre_logits: bool = False, *, grid: Grid | None = None
    ) -> Float[Tensor, "batch *length classes"]:
        """Logits from the output of `forward_features`; `pre_logits`: the features in front of the classifier.

        `grid` is the patch grid of the images. It may be omitted for a placement and a head that do not depend on it.
        """
        given: Tensor | Tokens = tokens
        if self.config.head:
            given = split_tokens(tokens, self.registers.placement, self.registers.num_registers, grid)
        return self.head.features(given) if pre_logits else self.head(given)

    def forward(self, images: Images) -> Float[Tensor, "batch *length classes"]:
        """Logits, or features if there is no classifier; of each token if `config.head` is ""."""
        return self.forward_head(self.forward_features(images), grid=self.patch_embed.grid(images))

    # Intermediate tokens

    def tokens(self, images: Images, layers: Layers = None, *, tensor: TokenTensor = "residual") -> list[Tokens]:
        """The tokens of the given layers, patches and registers separate.

        Layer k is the residual stream after block k, counted from 0 (negative: from the end; None: all). `residual`
        is that stream, `mixer` what the block's mixer adds to it before stochastic depth, `normed` the stream
        after the final norm. Blocks after the last given layer do not run.
        """
        wanted = layer_indices(self, layers)
        if tensor not in ("residual", "mixer", "normed"):
            raise InputError(f"tensor={tensor!r} is not known; choose residual, mixer or normed.")
        x, grid = self.embed(images)
        found: dict[int, Tokens] = {}
        for index in range(max(wanted, default=-1) + 1):
            block = self.blocks[index]
            assert isinstance(block, MambaBlock)
            if tensor == "mixer" and index in wanted:
                added = block.branch(x, grid, self._positions(x, grid))
                found[index] = self.registers.split(added, grid)
                x = x + block.drop_path(added)
                continue
            x = self.run_block(block, x, grid)
            if index in wanted:
                found[index] = self.registers.split(self.norm(x) if tensor == "normed" else x, grid)
        return [found[index] for index in wanted]

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]] | dict[str, Any]:
        """timm's `forward_intermediates`: the final tokens, and patch tokens of some layers in ascending order.

        The arguments are those of timm's vision transformer; its prefix tokens are the registers here.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt={output_fmt!r} is not known; choose NCHW or NLC.")
        wanted = sorted(set(self._take(indices)))
        tokens, grid = self.embed(x)
        intermediates: list[Any] = []
        last = wanted[-1] if stop_early and wanted else self.num_layers - 1
        for index in range(last + 1):
            tokens = self.run_block(self.blocks[index], tokens, grid)
            if index in wanted:
                split = self.registers.split(self.norm(tokens) if norm else tokens, grid)
                patches = split.map() if output_fmt == "NCHW" else split.patches
                intermediates.append((patches, split.registers) if return_prefix_tokens else patches)
        if intermediates_only:
            return {"image_intermediates": intermediates} if output_dict else intermediates
        final = self.norm(tokens)
        return (
            {"image_intermediates": intermediates, "image_features": final} if output_dict else (final, intermediates)
        )

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        if isinstance(indices, int):
            if not 0 < indices <= self.num_layers:
                raise InputError(f"indices={indices} must be between 1 and the number of layers, {self.num_layers}.")
            return list(range(self.num_layers - indices, self.num_layers))
        return layer_indices(self, indices)

    # timm's contract

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the blocks after the last given layer, and the head; returns the layers.

        Without a head `forward` returns the mean of the patches, so every parameter keeps a gradient.
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
        """The linear layer that computes the logits, or an identity."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one for `num_classes`; 0 removes it.

        `global_pool`, a key of `mambar.nn.HEADS` or "" for unpooled tokens, replaces the read-out as well.
        """
        head = self.config.head if global_pool is None else global_pool
        config = self.config.replace(num_classes=num_classes, head=head)
        like = next(self.head.parameters(), self.pos_embed.weight)
        if config.head != self.config.head:
            self.head = self._head(config)
        else:
            self.head.reset(num_classes)
        self.head.to(device=like.device, dtype=like.dtype).train(self.training)
        self.config = config

    def no_weight_decay(self) -> set[str]:
        """The parameters without weight decay, as in the released code: positions and registers."""
        return {"pos_embed.weight", "registers.embedding", "registers.position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameter names to layers, for layer-wise learning-rate decay."""
        return {
            "stem": r"^patch_embed|^pos_embed|^registers",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Resizes the position table to the grid of another image size (see `nn.position_embed`)."""
        if patch_size is not None and patch_size != self.config.patch_size:
            raise InputError(
                f"patch_size={patch_size} differs from the model's {self.patch_size}, which is fixed; "
                "build a new model."
            )
        if img_size is None:
            return
        config = self.config.replace(img_size=img_size)
        resized = resize_positions(self.pos_embed.weight.detach(), self.pos_embed.grid, config.grid)
        self.pos_embed.weight = nn.Parameter(resized, requires_grad=self.pos_embed.weight.requires_grad)
        self.pos_embed.grid = config.grid
        self.config = config
        # timm reads the current input size of a model from here when it saves.
        self._traits = {**self._traits, "img_size": config.size}


def drop_path_rates(config: VisionMambaConfig) -> list[float]:
    """The drop-path rate of each block: linear from 0 to `drop_path_rate`."""
    last = max(config.depth - 1, 1)
    return [config.drop_path_rate * index / last for index in range(config.depth)]
