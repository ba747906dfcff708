"""`mambar bench`: speed of ops and models on this machine, beside the measured hardware limits."""

from datetime import date
from typing import Annotated

import typer

from mambar.cli.arguments import Device, ImgSize, Out
from mambar.device import choose_device
from mambar.errors import InputError

_DTYPES = ("float32", "bfloat16", "float16")
_PEERS = ("timm/vit_base_patch16_224",)


def bench(
    what: Annotated[str, typer.Argument(help="ops or model.")],
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch.")] = None,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence (ops).")] = 208,
    dtype: Annotated[str | None, typer.Option(help=f"One of {', '.join(_DTYPES)} (ops).")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAMES", help="Names, comma-separated.")] = None,
    img_size: ImgSize = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (model).")] = False,
    rounds: Annotated[int | None, typer.Option(min=3, help="Repetitions of each measurement.")] = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Measure the speed of the ops or of whole models, and print a Markdown table. --out writes it to a file."""
    if what not in ("ops", "model"):
        raise InputError(f"bench {what!r} is not known; choose ops or model.")
    chosen = choose_device(device)
    gpu = chosen.startswith("cuda")
    if what == "ops":
        text = _ops(
            chosen, dtype or ("bfloat16" if gpu else "float32"), batch_size or (128 if gpu else 8), seq_len, rounds
        )
    else:
        names = model.split(",") if model else ["mambar_base_patch16_224", *_PEERS]
        text = _models(chosen, names, batch_size or (128 if gpu else 2), img_size or 224, compiled, rounds)
    typer.echo(text)
    if out is not None:
        from mambar.atomic_files import write_atomically

        if out.exists():
            raise InputError(f"--out {out} exists already; choose another file.")
        write_atomically(out, text.encode())


def _ops(device: str, dtype: str, batch_size: int, seq_len: int, rounds: int | None) -> str:
    import torch

    from mambar.bench.ceilings import measure_ceilings
    from mambar.bench.machine import describe
    from mambar.bench.ops import COLUMNS, ScanShape, bench_scan
    from mambar.bench.table import markdown

    if dtype not in _DTYPES:
        raise InputError(f"--dtype {dtype} is not known; choose one of {', '.join(_DTYPES)}.")
    shape = ScanShape(batch=batch_size, length=seq_len)
    ceilings = measure_ceilings(device)
    rows = bench_scan(shape, device=device, dtype=getattr(torch, dtype), ceilings=ceilings, rounds=rounds or 7)
    head = f"Selective scan, one direction, {shape}, {dtype}. {date.today().isoformat()}, {describe(device)}."
    return f"{head}\n\nMeasured ceilings: {ceilings.line()}.\n\n{markdown(COLUMNS, rows)}"


def _models(device: str, names: list[str], batch_size: int, img_size: int, compiled: bool, rounds: int | None) -> str:
    from mambar.bench.machine import describe
    from mambar.bench.model import COLUMNS, ModelBench, measure
    from mambar.bench.table import markdown

    benches = [ModelBench(name=name, batch=batch_size, img_size=img_size, compiled=compiled) for name in names]
    rows = [measure(each, device=device, rounds=rounds or 5) for each in benches]
    gpu = device.startswith("cuda")
    head = f"Whole models, {'bfloat16 autocast' if gpu else 'float32'}, random weights and images."
    return f"{head} {date.today().isoformat()}, {describe(device)}.\n\n{markdown(COLUMNS, rows)}"
