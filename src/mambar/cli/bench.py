"""`mambar bench`: speed on this machine, parity first, beside the measured ceilings."""

from datetime import date
from typing import Annotated

import typer

from mambar.cli.arguments import Assignments, parse, whole_number
from mambar.device import choose_device
from mambar.errors import InputError

_PEERS = ("timm/vit_base_patch16_224",)


def bench(
    what: Annotated[str, typer.Argument(help="ops or model.")],
    assignments: Assignments = None,
) -> None:
    """Measure the ops, or whole models, and print a Markdown table.

    Options: device=auto; ops: batch=8 length=208 dtype=float32|bfloat16|float16; model: name= batch= img_size=224
    compiled=true; out=FILE writes the table as well.
    """
    options = parse(
        assignments, allowed=("device", "batch", "length", "dtype", "name", "img_size", "compiled", "rounds", "out")
    )
    if what not in ("ops", "model"):
        raise InputError(f"bench {what!r} is not known; choose ops or model.")
    device = choose_device(options.device)
    text = _ops(options.fields, device) if what == "ops" else _models(options.fields, device)
    typer.echo(text)
    if options.out is not None:
        from mambar.hub import write_atomically

        if options.out.exists():
            raise InputError(f"out={options.out} exists already; choose another file.")
        write_atomically(options.out, text.encode())


def _ops(fields: dict[str, str], device: str) -> str:
    import torch

    from mambar.bench.ceilings import measure_ceilings
    from mambar.bench.machine import describe
    from mambar.bench.ops import COLUMNS, ScanShape, bench_scan
    from mambar.bench.table import markdown

    gpu = device.startswith("cuda")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = fields.get("dtype", "bfloat16" if gpu else "float32")
    if name not in dtypes:
        raise InputError(f"dtype={name!r} is not known; choose one of {', '.join(dtypes)}.")
    shape = ScanShape(
        batch=whole_number("batch", fields.get("batch", "128" if gpu else "8"), 1),
        length=whole_number("length", fields.get("length", "208"), 1),
    )
    ceilings = measure_ceilings(device)
    rows = bench_scan(
        shape,
        device=device,
        dtype=dtypes[name],
        ceilings=ceilings,
        rounds=whole_number("rounds", fields.get("rounds", "7"), 3),
    )
    head = f"Selective scan, one direction, {shape}, {name}. {date.today().isoformat()}, {describe(device)}."
    return f"{head}\n\nMeasured ceilings: {ceilings.line()}.\n\n{markdown(COLUMNS, rows)}"


def _models(fields: dict[str, str], device: str) -> str:
    from mambar.bench.machine import describe
    from mambar.bench.model import COLUMNS, ModelBench, measure
    from mambar.bench.table import markdown
    from mambar.cli.arguments import truth

    gpu = device.startswith("cuda")
    names = fields["name"].split(",") if "name" in fields else ["mambar_base_patch16_224", *_PEERS]
    rows = [
        measure(
            ModelBench(
                name=name,
                batch=whole_number("batch", fields.get("batch", "128" if gpu else "2"), 1),
                img_size=whole_number("img_size", fields.get("img_size", "224"), 1),
                compiled=truth("compiled", fields.get("compiled", "false")),
            ),
            device=device,
            rounds=whole_number("rounds", fields.get("rounds", "5"), 3),
        )
        for name in names
    ]
    head = f"Whole models, {'bfloat16 autocast' if gpu else 'float32'}, random weights and images."
    return f"{head} {date.today().isoformat()}, {describe(device)}.\n\n{markdown(COLUMNS, rows)}"
