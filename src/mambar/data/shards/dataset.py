"""WebDataset tar files with random access, so that folders and tars share sampler and resume.

A sample is two adjacent members, `KEY.jpg` (or png, webp) and `KEY.cls` (its label as text). Nothing is extracted: the
index stores the position of each image's bytes. `pack_folder` writes tars and index; for other tars the index is built
once.
"""

import hashlib
import zlib
from contextlib import suppress
from pathlib import Path

from mambar.data.classification.folder import listing_fingerprint
from mambar.data.classification.wordnet import are_wordnet_ids, wordnet_names
from mambar.data.dataset import SPLIT_NAMES, Sample, check_split
from mambar.data.loading.images import read_image
from mambar.data.loading.unreadable_images import SkippingDataset
from mambar.data.shards.index import (
    ShardIndex,
    build_index,
    index_path,
    read_index,
    save_index,
    shard_files,
    shard_splits,
)
from mambar.errors import DataError, DiskError, ImageError
from mambar.image_file import MAX_PIXELS
from mambar.messages import one_line


class TarShards(SkippingDataset):
    """A split of a folder of tar shards, with the sample numbers of the folder that was packed.

    WordNet ids, EXIF orientation and unreadable images are handled as in `ImageFolder`. Reading checks every image's
    CRC-32; `verify` checks whole files.
    """

    def __init__(self, root: Path | str, split: str, *, max_pixels: int = MAX_PIXELS) -> None:
        self.root = Path(root)
        if split not in SPLIT_NAMES:
            check_split(split, "a folder of shards")
        self.max_pixels = max_pixels
        self.index = open_index(self.root, split)
        wordnet = are_wordnet_ids(self.index.classes)
        self.apply_exif_orientation = not wordnet
        self.classes = wordnet_names(self.index.classes) if wordnet else self.index.classes
        self.name = self.root.name or str(self.root)
        super().__init__(self.index.labels, split, source=str(self.root))

    def fingerprint(self) -> str:
        """sha256 of the classes and of every image's name and label; equal to that of the packed folder."""
        return listing_fingerprint(self.index.classes, self.index.paths, self.labels)

    def verify(self) -> None:
        """Reads all shards; DataError for the first whose sha256 differs from the index."""
        for shard in self.index.shards:
            with (self.root / shard.name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != shard.sha256:
                raise DataError(
                    f"{self.root / shard.name} is damaged: sha256 {actual}, the index says {shard.sha256}; "
                    "copy it again."
                )

    def _read(self, index: int) -> Sample:
        name = f"{self.index.paths[index]} in {self.root / self.index.shards[self.index.shard[index]].name}"
        data = self._bytes(index, name)
        image = read_image(
            data, name=name, apply_exif_orientation=self.apply_exif_orientation, max_pixels=self.max_pixels
        )
        return Sample(image, int(self.labels[index]))

    def _bytes(self, index: int, name: str) -> bytes:
        shard = self.index.shards[self.index.shard[index]]
        size = int(self.index.size[index])
        try:
            # Opened for each image: forked workers would share the position of an open file.
            with (self.root / shard.name).open("rb") as file:
                file.seek(int(self.index.offset[index]))
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
        if len(data) != size or zlib.crc32(data) != int(self.index.crc[index]):
            raise ImageError(f"{name} is damaged: its checksum differs from the index.")
        return data


def open_index(root: Path, split: str) -> ShardIndex:
    """The index of a split, read from its file or built from the shards."""
    file = index_path(root, split)
    files = shard_files(root, split)
    if file.is_file():
        index = read_index(file)
        index.check_files(root)
        if files and {shard.name for shard in index.shards} != {path.name for path in files}:
            raise DataError(
                f"{file} was made of other tar files than the {len(files)} from {files[0].name} on; remove it to have "
                "it built again."
            )
        return index
    if not files:
        there = one_line(", ".join(shard_splits(root).values())) or "no other shards"
        raise DataError(f"data={root} has no {split} shards, such as {split}-000000.tar; it has {there}.")
    index = build_index(root, files)
    # In a read-only folder the index is built each time.
    with suppress(DiskError):
        save_index(file, index)
    return index
