"""ViT, DeiT, DINO and their like from timm, looked into like a Mamba-R: the class token counts as a register."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mambar.errors import InputError
from mambar.models.protocol import TokenTensor
from mambar.nn.registers import Tokens


class TimmViT(nn.Module):
    """A `TokenModel` around one of timm's plain transformers.

    Class, distillation and register tokens, in timm's order, are the `registers`; `mixer` is what a whole block
    (attention and MLP) added. Made for models with `blocks` that keep one sequence of prefix and patch tokens;
    another one raises `InputError`.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        blocks, prefix = getattr(network, "blocks", None), getattr(network, "num_prefix_tokens", None)
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if not isinstance(blocks, nn.Module) or not isinstance(prefix, int) or patch is None:
            raise InputError(f"timm/{name} is no plain transformer; choose a ViT, DeiT, DINO, BEiT or EVA of timm.")
        if patch[0] != patch[1]:
            raise InputError(f"timm/{name} has patches of {patch[0]} × {patch[1]} pixels; only squares can be shown.")
        self.network = network
        self.name = name
        self.patch_size = int(patch[0])
        self.num_prefix = prefix
        self.pretrained_cfg: dict[str, Any] = dict(getattr(network, "pretrained_cfg", {}))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        return list(self.network.get_submodule("blocks").children())

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def dim(self) -> int:
        """The width of a token."""
        return int(self.network.num_features)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.network(images)

    def tokens(
        self,
        images: Float[Tensor, "batch channels height width"],
        layers: Sequence[int] | None = None,
        *,
        tensor: TokenTensor = "residual",
    ) -> list[Tokens]:
        """The tokens of the given layers (see `TokenModel`)."""
        count = self.num_layers
        for layer in layers or ():
            if not -count <= layer < count:
                raise InputError(f"layer {layer} does not exist; the model has layers 0 to {count - 1}.")
        wanted = [layer % count for layer in (range(count) if layers is None else layers)]
        if tensor not in ("residual", "mixer", "normed"):
            raise InputError(f"tensor={tensor!r} is not known; choose residual, mixer or normed.")
        rows, cols = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        seen = self._streams(images, set(wanted))
        norm = self.network.get_submodule("norm")
        found = []
        for layer in wanted:
            before, after = seen[layer]
            stream = {"residual": lambda a, b: b, "mixer": lambda a, b: b - a, "normed": lambda a, b: norm(b)}
            sequence = stream[tensor](before, after)
            if sequence.ndim != 3 or sequence.shape[1] != self.num_prefix + rows * cols:
                raise InputError(
                    f"timm/{self.name} keeps tokens of shape {tuple(sequence.shape)} for {rows} × {cols} patches; "
                    "only models with one sequence of prefix and patch tokens can be shown."
                )
            apart = sequence[:, self.num_prefix :], sequence[:, : self.num_prefix]
            found.append(Tokens(patches=apart[0], registers=apart[1], grid=(rows, cols)))
        return found

    def _streams(self, images: Tensor, wanted: set[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """What goes into and comes out of each wanted block."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        handles = []
        for index, block in enumerate(self.blocks):
            if index in wanted:

                def remember(module: nn.Module, given: tuple[Any, ...], made: Any, index: int = index) -> None:
                    seen[index] = (given[0], made[0] if isinstance(made, tuple) else made)

                handles.append(block.register_forward_hook(remember))
        try:
            self.network.forward_features(images)  # pyright: ignore[reportCallIssue]
        finally:
            for handle in handles:
                handle.remove()
        return seen


def create_timm_vit(name: str, *, pretrained: bool = False, image_size: int | tuple[int, int] | None = None) -> TimmViT:
    """One of timm's models by its name without the "timm/" in front; `pretrained` downloads its weights.

    image_size (pixels) resizes the positions. Raises `InputError` for a name that timm does not know and for
    networks that are no plain transformers.
    """
    import timm

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean timm/{near[0]}?" if near else "timm.list_models() lists them."
        raise InputError(f"timm knows no model {name!r}; {hint}")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise InputError(f"timm/{name} takes no image size; it is no plain transformer.") from error
    return TimmViT(network.eval(), name)
