"""`mambar demo`: train and compare two small networks, in about two minutes on two CPU cores."""

from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Device, Fields, NumWorkers, Out, named_values, print_json
from mambar.cli.console import say


def demo(
    fields: Fields = None,
    out: Out = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both networks.")] = 0,
    device: Device = "cpu",
    num_workers: NumWorkers = 0,
    as_json: AsJson = False,
) -> None:
    """Train a small Mamba-R and a Vim (one middle register) on handwritten digits, and compare them.

    NAME=VALUE changes fields of both recipes, for example epochs=2.
    """
    from mambar.recipes.demo import run_demo

    changes = [f"{name}={value}" for name, value in named_values(fields).items()]
    result = run_demo(out=out, seed=seed, device=device, num_workers=num_workers or 0, fields=changes)
    if as_json:
        print_json(result.to_dict())
        return
    for name, top1 in result.top1.items():
        say(f"{name:28} {top1:.2%} top-1 on held-out digits")
    say(f"report: {result.report}")
