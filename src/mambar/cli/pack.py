"""`mambar pack`: a folder of class sub-folders as tar shards with an index."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import Assignments, parse, whole_number
from mambar.cli.console import say


def pack(
    folder: Annotated[Path, typer.Argument(help="Class sub-folders, with or without train/ and val/.")],
    out: Annotated[Path, typer.Argument(help="A new directory for the shards.")],
    assignments: Assignments = None,
) -> None:
    """Write a folder of images as tar shards (WebDataset layout) with checksums (shard_megabytes=256)."""
    options = parse(assignments, allowed=("shard_megabytes",))
    megabytes = whole_number("shard_megabytes", options.fields.get("shard_megabytes", "256"), 4)

    from mambar.data.shards.pack import pack_folder

    packed = pack_folder(folder, out, shard_bytes=megabytes * 1_000_000)
    counts = ", ".join(f"{count:,} images to {split}" for split, count in packed.images.items())
    damaged = f", {packed.unreadable} unreadable" if packed.unreadable else ""
    say(f"{out}: {counts}{damaged}; {packed.shards} shards, {packed.bytes / 1e6:.1f} MB")
