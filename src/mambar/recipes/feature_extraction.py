"""Features of a model on the splits of a dataset, written to files by any number of processes."""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambar.analysis.analyzed_model import AnalyzedModel, open_model
from mambar.data import ImageDataset, evaluation_batches, open_dataset
from mambar.data.loading.loaders import Batch
from mambar.errors import InputError
from mambar.evaluation.frozen_features import write_rows
from mambar.json_fields import check_names
from mambar.nn import Tokens
from mambar.training.distributed.environment import rank
from mambar.training.distributed.process_group import ProcessGroup, init_process_group
from mambar.training.run_data import recipe_with_data


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The tokens of a model on the splits of a dataset, computed by any number of processes.

    Attributes:
        group: The processes.
        analyzed: The model.
        directory: Where the features are written, a folder for each split.
        splits: The datasets by split.
        batch_size, num_workers: Options of the data loader.
    """

    group: ProcessGroup
    analyzed: AnalyzedModel
    directory: Path
    splits: Mapping[str, ImageDataset]
    batch_size: int
    num_workers: int

    def batches(self, split: str, transform: Any) -> Iterator[Batch]:
        """This process's batches of a split."""
        return evaluation_batches(
            self.splits[split],
            transform,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            rank=self.group.rank,
            world_size=self.group.world_size,
            pin_memory=self.group.device.type == "cuda",
        )

    def write(
        self,
        split: str,
        transform: Any,
        rows: Callable[[Tokens, Batch], Mapping[str, np.ndarray]],
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        """Writes this process's rows of a split (see `write_rows`).

        `progress` receives the part of the work, the number of images done, and the number of this process's images.
        """
        part, total = f"features of {split}", -(-len(self.splits[split]) // self.group.world_size)
        (self.directory / split).mkdir(parents=True, exist_ok=True)
        write_rows(
            self.analyzed.model,
            self.batches(split, transform),
            self.directory / split,
            num_images=len(self.splits[split]),
            rows=rows,
            device=self.group.device,
            prepare=self.analyzed.preprocessing.normalize,
            progress=None if progress is None else lambda done: progress(part, done, total),
        )


@contextmanager
def extraction(
    source: str | Path,
    splits: Mapping[str, ImageDataset],
    directory: Path | None,
    *,
    pretrained: bool,
    img_size: int | tuple[int, int] | None,
    batch_size: int,
    device: str,
    num_workers: int,
) -> Iterator[Extraction]:
    """The extraction with the model that `source` names; `directory` is that of the first process."""
    with init_process_group(device) as group:
        yield Extraction(
            group=group,
            analyzed=open_model(source, pretrained=pretrained, img_size=img_size, device=group.device),
            directory=Path(group.broadcast_object(str(directory))),
            splits=splits,
            batch_size=batch_size,
            num_workers=num_workers,
        )


@contextmanager
def feature_directory(kept: str | Path | None) -> Iterator[Path | None]:
    """`kept`, a new directory, or by default a temporary one, which only the first process makes and removes."""
    if kept is not None:
        path = Path(kept).expanduser()
        if path.exists():
            raise InputError(f"{path} exists; give a new directory for the features.")
        yield path
    elif rank() == 0:
        with tempfile.TemporaryDirectory(prefix="mambar-features-") as made:
            yield Path(made)
    else:
        yield None


def open_splits(
    source: str | Path,
    data: str | None,
    split: str | None,
    data_options: Mapping[str, Any] | None,
    *,
    kind: str = "classification",
) -> tuple[str, dict[str, ImageDataset], str]:
    """(data, the training images and those of `split`, the split); by default the data of the run, and val."""
    options = dict(data_options or {})
    if data is None:
        recipe = recipe_with_data(source)
        data, options = recipe.data, {**recipe.data_options, **options}
    split = split or "val"
    return data, {name: open_dataset(data, name, kind=kind, **options) for name in ("train", split)}, split


def check_selection(option: str, given: Sequence[str], known: Collection[str]) -> None:
    """Raises `InputError` for a name that is not known, and if no name is given."""
    if not given:
        raise InputError(f"{option} is empty; choose one or more of {', '.join(known)}.")
    check_names(given, known, what=f"{option} has no choice")
