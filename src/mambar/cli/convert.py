"""`mambar convert`: released checkpoints to this format, and back."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import Force, ImgSize
from mambar.cli.console import say


def convert(
    source: Annotated[
        Path, typer.Argument(help="A released .pth or .safetensors; with --official, a model directory.")
    ],
    target: Annotated[Path, typer.Argument(help="The directory to write; with --official, a .safetensors file.")],
    img_size: ImgSize = None,
    official: Annotated[
        bool, typer.Option("--official", help="Convert a model back to a released checkpoint.")
    ] = False,
    force: Force = False,
) -> None:
    """Convert a released Mamba-R or Vim checkpoint to config.json and model.safetensors, or back."""
    if official:
        _to_official(source, target, force)
        return
    from mambar.hub import load_official, save_model

    model = load_official(source, img_size=img_size)
    save_model(target, model, force=force)
    config = model.config
    say(
        f"{target}: {sum(p.numel() for p in model.parameters()):,} parameters, {config.depth} blocks of width "
        f"{config.embed_dim}, {config.num_registers} registers, {config.num_classes} classes"
    )


def _to_official(source: Path, target: Path, force: bool) -> None:
    import os

    import safetensors.torch

    from mambar.atomic_files import write_atomically
    from mambar.errors import InputError
    from mambar.hub import load, to_official

    if os.path.lexists(target) and not force:
        raise InputError(f"{target} exists already; choose another place or give --force.")
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors; no pickle is written.")
    from mambar.models.timm_vit import as_vision_mamba

    model = as_vision_mamba(load(source), "Conversion to a released checkpoint")
    vim = model.config.placement == "middle" and model.config.num_registers == 1
    state = to_official(model.state_dict(), source="vim" if vim else "mamba-reg", config=model.config)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, safetensors.torch.save({key: value.contiguous() for key, value in state.items()}))
    say(f"{target}: {len(state)} tensors under the released names")
