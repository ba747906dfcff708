"""The transformers model classes; each has a `VisionMamba` as `model`, so they load each other's weights."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from mambar.errors import InputError
from mambar.hub.huggingface_config import MambarConfig
from mambar.models.protocol import Images
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.block import MambaBlock
from mambar.nn.pyramid import FeaturePyramid


class MambarLayer(GradientCheckpointingLayer, MambaBlock):
    """A `MambaBlock` whose activations transformers can checkpoint."""


class MambarPreTrainedModel(PreTrainedModel):
    """Base class: loading, weight initialization and gradient checkpointing."""

    config: MambarConfig
    config_class = MambarConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["MambarLayer"]  # noqa: RUF012

    model: VisionMamba

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of patches, to whose output peft attaches when activations are checkpointed."""
        return self.model.patch_embed

    def _prepared(self, model: VisionMamba) -> VisionMamba:
        """Gives the blocks their class, and marks the parameters as initialized, so that it is not done again."""
        for block in model.blocks:
            block.__class__ = MambarLayer
        for parameter in model.parameters():
            parameter._is_hf_initialized = parameter.device.type != "meta"  # type: ignore[attr-defined]
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes parameters missing in a checkpoint (a new classifier) as `VisionMamba` does.

        transformers calls this for each module; the first call sets all. The values come from a second model.
        """
        if isinstance(module, nn.ConvTranspose2d | nn.GroupNorm | nn.BatchNorm2d):
            super()._init_weights(module)
            return
        missing = [each for each in self.model.named_parameters() if not getattr(each[1], "_is_hf_initialized", False)]
        initial = VisionMamba(self.model.config) if missing else nn.Module()
        for name, parameter in missing:
            parameter.copy_(initial.get_parameter(name))
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    def _hidden_states(self, images: Images) -> tuple[list[Tensor], tuple[int, int]]:
        """The residual state before the first block and after each (batch, length, dim), and the patch grid."""
        # An image processor returns float32, whatever the dtype of the model.
        x, grid = self.model.embed(images.to(self.model.patch_embed.proj.weight.dtype))
        states = [x]
        for block in self.model.blocks:
            states.append(self.model.run_block(block, states[-1], grid))
        return states, grid


class MambarModel(MambarPreTrainedModel):
    """Outputs all tokens after the final norm, and the input of the classifier as `pooler_output`."""

    # In checkpoints with a classifier only.
    _keys_to_ignore_on_load_unexpected = [r"model\.head\.classifier\."]  # noqa: RUF012

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        self.model = self._prepared(VisionMamba(config.model_config(num_classes=0)))
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Images, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """`hidden_states`, if requested, are the residual stream before the first block and after each."""
        states, grid = self._hidden_states(pixel_values)
        tokens = self.model.norm(states[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.model.forward_head(tokens, pre_logits=True, grid=grid),
            hidden_states=tuple(states) if _requested(output_hidden_states, self.config) else None,
        )


class MambarForImageClassification(MambarPreTrainedModel):
    """Image classifier: logits, and the loss if labels are given."""

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self._prepared(VisionMamba(config.model_config()))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Images,
        labels: Int[Tensor, " batch"] | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """The usual outputs of an image classifier; the loss is cross-entropy unless `problem_type` is set."""
        states, grid = self._hidden_states(pixel_values)
        logits = self.model.forward_head(self.model.norm(states[-1]), grid=grid)
        return ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=tuple(states) if _requested(output_hidden_states, self.config) else None,
        )


class MambarBackbone(BackboneMixin, MambarPreTrainedModel):
    """Feature maps of the patch tokens after the requested stages; with `pyramid`, four maps at four strides.

    The maps are the residual stream without the final norm; segmentation decoders apply their own.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"model\.head\.", r"model\.norm\."]  # noqa: RUF012

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        names = config.out_features or []
        if config.pyramid and len(names) != 4:
            raise InputError(f"a pyramid takes 4 stages; out_features names {len(names)}.")
        model = VisionMamba(config.model_config(num_classes=0))
        # Blocks after the last stage, the final norm and the head would be parameters without gradient.
        last = max(config.stage_names.index(name) for name in names)
        model.prune_intermediate_layers([max(last - 1, 0)], prune_norm=True, prune_head=True)
        self.model = self._prepared(model)
        self.pyramid = (
            FeaturePyramid(config.embed_dim, config.patch_size, norm=config.pyramid_norm) if config.pyramid else None
        )
        self.num_features = [config.embed_dim] * (config.depth + 1)
        self.post_init()

    def forward(
        self,
        pixel_values: Images,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """`feature_maps` (batch, dim, rows, cols), one per stage, in the order of the stages."""
        states, grid = self._hidden_states(pixel_values)
        stages = zip(self.stage_names, states, strict=False)
        names = self.config.out_features or []
        maps = [self.model.registers.split(state, grid).map() for name, state in stages if name in names]
        output = BackboneOutput(
            feature_maps=tuple(maps if self.pyramid is None else self.pyramid(maps)),  # type: ignore[arg-type]
            hidden_states=tuple(states) if _requested(output_hidden_states, self.config) else None,
        )
        return output if return_dict is not False else output.to_tuple()


def _requested(output_hidden_states: bool | None, config: MambarConfig) -> bool:
    return bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
