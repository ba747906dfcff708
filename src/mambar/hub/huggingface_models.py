"""Our models as transformers' model classes; all hold one `VisionMamba` under `model.`, so weights are exchanged."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutputWithNoAttention,
)

from mambar.errors import InputError
from mambar.hub.huggingface_config import MambarConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.nn.pyramid import FeaturePyramid

Images = Float[Tensor, "batch channels height width"]


class MambarPreTrainedModel(PreTrainedModel):
    """What the three classes share: loading, start values, gradient checkpointing."""

    config: MambarConfig
    config_class = MambarConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["MambaBlock"]  # noqa: RUF012

    def _own(self, model: VisionMamba) -> VisionMamba:
        """Marks the start values our constructor has drawn, which transformers would draw anew."""
        for parameter in model.parameters():
            if parameter.device.type != "meta":
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Gives what a checkpoint did not hold (a new classifier, say) the start values of our constructor.

        transformers asks module by module; a module's own parameters are found in a model built once for it.
        """
        if isinstance(module, nn.ConvTranspose2d | nn.GroupNorm | nn.BatchNorm2d):
            super()._init_weights(module)
            return
        missing = [name for name, parameter in module.named_parameters(recurse=False) if not _is_set(parameter)]
        if not missing:
            return
        model = self.get_submodule("model")
        assert isinstance(model, VisionMamba)
        prefix = next((name for name, each in model.named_modules() if each is module), None)
        if prefix is None:
            return
        fresh = self._fresh_values(model)
        for name in missing:
            full = f"{prefix}.{name}" if prefix else name
            module.get_parameter(name).copy_(fresh.pop(full))

    def _fresh_values(self, model: VisionMamba) -> dict[str, Tensor]:
        """Start values of the parameters that are not set; each is taken out when it is used."""
        fresh: dict[str, Tensor] = self.__dict__.setdefault("_fresh", {})
        if not fresh:
            wanted = {name for name, parameter in model.named_parameters() if not _is_set(parameter)}
            built = VisionMamba(model.config).named_parameters()
            fresh.update({name: parameter.detach() for name, parameter in built if name in wanted})
        return fresh

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        self.get_submodule("model").set_grad_checkpointing(enable)  # type: ignore[operator]


def _is_set(parameter: nn.Parameter) -> bool:
    """Whether a checkpoint or our constructor gave the values; transformers keeps that mark."""
    return bool(getattr(parameter, "_is_hf_initialized", False))


def _streams(model: VisionMamba, images: Images) -> tuple[list[Tensor], tuple[int, int]]:
    """The stream in front of the first block and after each (batch, length, dim), and the patch grid."""
    x, grid = model.embed(images)
    streams = [x]
    for block in model.blocks:
        streams.append(model._through(block, streams[-1]))
    return streams, grid


class MambarModel(MambarPreTrainedModel):
    """All tokens after the final norm, and as `pooler_output` what the classifier reads."""

    # A checkpoint of the classifier holds these, a model without it does not.
    _keys_to_ignore_on_load_unexpected = [r"model\.head\.classifier\."]  # noqa: RUF012

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        self.model = self._own(VisionMamba(config.model_config(num_classes=0)))
        self.post_init()

    def forward(
        self,
        pixel_values: Images,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """`hidden_states`, where asked for: the stream in front of the first block and after each."""
        streams, _grid = _streams(self.model, pixel_values)
        tokens = self.model.norm(streams[-1])
        output = BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.model.forward_head(tokens, pre_logits=True),
            hidden_states=tuple(streams) if _asked(output_hidden_states, self.config) else None,
        )
        return output if return_dict is not False else output.to_tuple()


class MambarForImageClassification(MambarPreTrainedModel):
    """Logits, and the loss where labels are given."""

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self._own(VisionMamba(config.model_config()))
        self.post_init()

    def forward(
        self,
        pixel_values: Images,
        labels: Int[Tensor, " batch"] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """As every image classifier of transformers; the loss is cross-entropy unless `problem_type` says else."""
        streams, _grid = _streams(self.model, pixel_values)
        logits = self.model.forward_head(self.model.norm(streams[-1]))
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=tuple(streams) if _asked(output_hidden_states, self.config) else None,
        )
        return output if return_dict is not False else output.to_tuple()


class MambarBackbone(BackboneMixin, MambarPreTrainedModel):
    """Feature maps of the patches after the stages asked for; with `pyramid`, four maps at four strides.

    The maps are the residual stream, as segmentation decoders with a norm of their own take it.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"model\.head\.", r"model\.norm\."]  # noqa: RUF012

    def __init__(self, config: MambarConfig) -> None:
        super().__init__(config)
        names = config.out_features or []
        if config.pyramid and len(names) != 4:
            raise InputError(f"a pyramid takes 4 stages; out_features names {len(names)}.")
        model = VisionMamba(config.model_config(num_classes=0))
        # Blocks behind the last stage, the final norm and the head would be parameters without gradient.
        last = max(config.stage_names.index(name) for name in names)
        model.prune_intermediate_layers([max(last - 1, 0)], prune_norm=True, prune_head=True)
        self.model = self._own(model)
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
        """`feature_maps` (batch, dim, rows, cols), one a stage, in the order of the stages."""
        streams, grid = _streams(self.model, pixel_values)
        stages = zip(self.stage_names, streams, strict=False)
        names = self.config.out_features or []
        maps = [self.model.registers.split(stream, grid).map() for name, stream in stages if name in names]
        output = BackboneOutput(
            feature_maps=tuple(maps if self.pyramid is None else self.pyramid(maps)),  # type: ignore[arg-type]
            hidden_states=tuple(streams) if _asked(output_hidden_states, self.config) else None,
        )
        return output if return_dict is not False else output.to_tuple()


def _asked(output_hidden_states: bool | None, config: MambarConfig) -> bool:
    return bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
