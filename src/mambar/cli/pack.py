"""`mambar pack`: a folder of class sub-folders as tar shards with an index, or images with objects in COCO's format."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from mambar.cli.arguments import DataOptions, data_options
from mambar.cli.console import say
from mambar.errors import InputError

logger = logging.getLogger("mambar.cli.pack")


def pack(
    data: Annotated[str, typer.Argument(help="A folder of classes; with --coco data with objects.")],
    out: Annotated[Path, typer.Argument(help="A new directory for the shards or the COCO files.")],
    assignments: DataOptions = None,
    coco: Annotated[bool, typer.Option("--coco", help="Write images and COCO annotations.")] = False,
    shard_megabytes: Annotated[int, typer.Option(min=4, help="Size of a shard.")] = 256,
) -> None:
    """Write a folder of images as tar shards (WebDataset layout) with checksums.

    With --coco, write train/ and val/ of a dataset for detection as PNG files and COCO annotations.
    """
    options = data_options(assignments)
    if coco:
        from mambar.data import open_dataset
        from mambar.data.detection.coco_export import write_coco

        if os.path.lexists(out):
            raise InputError(f"{out} exists; give a new directory.")
        for split in ("train", "val"):
            count = write_coco(open_dataset(data, split, kind="detection", **options), out, split, progress=logger.info)
            say(f"{out}: {count:,} images to {split}")
        return
    if options:
        raise InputError("data_options have an effect with --coco only; omit them.")
    from mambar.data.shards.pack import pack_folder

    packed = pack_folder(Path(data), out, shard_bytes=shard_megabytes * 1_000_000)
    counts = ", ".join(f"{count:,} images to {split}" for split, count in packed.images.items())
    damaged = f", {packed.unreadable} unreadable" if packed.unreadable else ""
    say(f"{out}: {counts}{damaged}; {packed.shards} shards, {packed.bytes / 1e6:.1f} MB")
