"""`mambar info`: what a model is and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, ImgSize, print_json
from mambar.cli.console import say_columns, say_table
from mambar.errors import InputError


def info(
    model: Annotated[
        str, typer.Argument(help="A name, timm/NAME, a run directory or a checkpoint; default: list all names.")
    ] = "",
    img_size: ImgSize = None,
    as_json: AsJson = False,
) -> None:
    """Print a model's sizes, parameters, multiply-adds, scan operations and memory.

    Of backbones from other packages only the parameters are counted.
    """
    from mambar.hub.weights import TRAINED, WEIGHTS
    from mambar.models.backbones import config_of, num_parameters
    from mambar.models.complexity import complexity
    from mambar.models.config import VARIANTS, VisionMambaConfig

    if not model:
        trained = {
            name: VARIANTS[name.split(".")[0]].replace(num_classes=len(weights.classes))
            for name, weights in TRAINED.items()
        }
        rows = {name: complexity(config) for name, config in {**VARIANTS, **trained}.items()}
        if as_json:
            print_json({name: vars(row) for name, row in rows.items()})
            return
        # Vim's authors released weights too, but `pretrained` does not load them; `mambar convert` does.
        top1 = {name: f"{weights.top1} %" for name, weights in WEIGHTS.items()}
        top1 |= {name: f"{weights.top1} % ({weights.data})" for name, weights in TRAINED.items()}
        header = ("name", "parameters", "multiply-adds", "top-1, pretrained")
        say_columns(
            header,
            (
                (name, f"{row.parameters / 1e6:6.1f} M", f"{row.linear_macs / 1e9:5.1f} G", top1.get(name, "–"))
                for name, row in rows.items()
            ),
        )
        return
    if Path(model).exists() or model in TRAINED:
        from mambar.hub import load

        config = load(model).config
    else:
        config = config_of(model)
    if config is None:
        raise InputError(f"{model} has no configuration; `mambar info` takes models that mambar.create_model makes.")
    if img_size is not None:
        config = config.replace(img_size=img_size)
    if not isinstance(config, VisionMambaConfig):
        counted = {"name": model, **config.to_dict(), "parameters": num_parameters(config)}
        if as_json:
            print_json(counted)
        else:
            say_table((name, f"{value:,}" if name == "parameters" else value) for name, value in counted.items())
        return
    costs = complexity(config)
    if as_json:
        print_json({"name": model, "config": config.to_dict(), "complexity": vars(costs)})
        return
    rows, cols = config.grid
    height, width = config.size
    head = f"{config.head}, reduced {config.register_reduction}-fold" if config.register_reduction > 1 else config.head
    lines = {
        "image": f"{height} x {width} pixels, patches of {config.patch_size}: {rows} x {cols}",
        "tokens": f"{costs.length} ({config.num_registers} registers, placed {config.placement})",
        "blocks": f"{config.depth}, width {config.embed_dim}, inner {config.d_inner}, state {config.d_state}",
        "head": f"{head}, {config.num_classes} classes",
        "parameters": f"{costs.parameters:,}",
        "multiply-adds": f"{costs.linear_macs / 1e9:.2f} G per image, without the scans",
        "scans": f"{costs.scan_flops / 1e9:.2f} GFLOP per image ({costs.scan_states / 1e6:.1f} M states)",
        "training memory": f"{costs.activation_bytes / 2**20:.1f} MiB of activations per image, estimated (bfloat16)",
    }
    say_table(lines.items())
