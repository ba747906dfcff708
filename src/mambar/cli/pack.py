"""`mambar pack`: a folder of class sub-folders as tar shards with an index."""

from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.console import say


def pack(
    folder: Annotated[Path, typer.Argument(help="A folder of class sub-folders, with or without train/ and val/.")],
    out: Annotated[Path, typer.Argument(help="A new directory for the shards.")],
    shard_megabytes: Annotated[int, typer.Option(min=4, help="Size of a shard.")] = 256,
) -> None:
    """Write a folder of images as tar shards (WebDataset layout) with checksums."""
    from mambar.data.shards.pack import pack_folder

    packed = pack_folder(folder, out, shard_bytes=shard_megabytes * 1_000_000)
    counts = ", ".join(f"{count:,} images to {split}" for split, count in packed.images.items())
    damaged = f", {packed.unreadable} unreadable" if packed.unreadable else ""
    say(f"{out}: {counts}{damaged}; {packed.shards} shards, {packed.bytes / 1e6:.1f} MB")
