"""Class-activation maps of token models, by the library pytorch-grad-cam.

The library reads a layer's output as a feature map. `token_maps` gives it the patches as such a map, without registers
or class tokens. The layer is the norm in front of a block's mixer: after the last mixer a register head reads no patch,
so their gradient would be zero.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.errors import InputError
from mambar.messages import did_you_mean, needs_package
from mambar.models.protocol import Images, layer_indices
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba

# Our name → the library's class.
CAM_METHODS: Final = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}


def check_cam_method(method: str) -> None:
    """Raises `InputError` unless the method exists and the library is installed."""
    if method not in CAM_METHODS:
        hint = did_you_mean(method, CAM_METHODS, otherwise=f"choose one of {', '.join(CAM_METHODS)}.")
        raise InputError(f"There is no class-activation map {method!r}; {hint}")
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError as error:
        raise InputError(needs_package("A class-activation map", "grad-cam", extra="cam")) from error


def token_maps(model: VisionMamba | TimmViT, grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The library's `reshape_transform`: tokens (batch, length, dim) → the patches as (batch, dim, rows, cols)."""

    def reshape(tokens: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch dim rows cols"]:
        if isinstance(model, VisionMamba):
            return model.registers.split(tokens, grid).map()
        return tokens[:, model.num_registers :].transpose(1, 2).unflatten(2, grid)

    return reshape


def class_activation_maps(
    model: VisionMamba | TimmViT,
    images: Images,
    *,
    method: str = "gradcam",
    layer: int = -1,
    classes: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "batch height width"], Int64[Tensor, "batch"]]:
    """Maps from 0 to 1 at the images' size, and their classes: those given, or else the predicted ones.

    `method` is a key of `CAM_METHODS`; `layer` counts from 0, or from the end. Gradients of the parameters are cleared.
    """
    check_cam_method(method)
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if not isinstance(model, VisionMamba | TimmViT) or model.num_classes < 1:
        raise InputError("Class-activation maps need a classifier: a Vision Mamba or a timm ViT with classes.")
    (index,) = layer_indices(model, [layer])
    block = model.blocks[index] if isinstance(model, VisionMamba) else model.model.blocks[index]
    norm: Any = block.norm if isinstance(model, VisionMamba) else block.norm1
    grid = (images.shape[2] // model.patch_size, images.shape[3] // model.patch_size)
    was_training = model.training
    cam = getattr(pytorch_grad_cam, CAM_METHODS[method])(
        model=model, target_layers=[norm], reshape_transform=token_maps(model, grid)
    )
    try:
        with torch.enable_grad():
            # Gradients flow also where all parameters are frozen.
            given = images.detach().clone().requires_grad_()
            targets = None if classes is None else [ClassifierOutputTarget(label) for label in classes]
            maps = torch.from_numpy(cam(input_tensor=given, targets=targets))
            predicted = cam.outputs.detach().argmax(1).cpu()
    finally:
        cam.activations_and_grads.release()
        model.zero_grad()
        model.train(was_training)
    return maps, predicted if classes is None else torch.tensor(list(classes))
