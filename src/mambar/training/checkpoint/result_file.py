"""result.json of a finished run: its metrics, protected by a checksum and bound to the recipe."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from mambar.errors import CheckpointError
from mambar.training.checkpoint import atomic_files, checksummed_json
from mambar.training.checkpoint.run_directory import RunDirectory

RESULT_NAME: Final = "result.json"
# 1: version 0.1, without a checksum.
RESULT_FORMAT: Final = 2


def write_result(directory: RunDirectory, *, metrics: Mapping[str, float], step: int) -> None:
    """Writes result.json: the run in `directory` is finished."""
    body = {
        "format_version": RESULT_FORMAT,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "step": step,
        "recipe_sha256": directory.recipe_sha256[0],
    }
    atomic_files.write_atomically(directory.path / RESULT_NAME, checksummed_json.dumps(body))


def read_result(directory: RunDirectory) -> dict[str, float] | None:
    """The metrics of a finished run, None if it is not finished; CheckpointError if the file was changed."""
    file = directory.path / RESULT_NAME
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format_version"] != 1:
            document = checksummed_json.loads(data, source=file, newest_format=RESULT_FORMAT)
            if document["recipe_sha256"] not in directory.recipe_sha256:
                raise CheckpointError(f"{file} belongs to a run with another recipe; remove it and resume.")
        checksummed_json.check_format_version(document["format_version"], source=file, newest=RESULT_FORMAT)
        metrics = document["metrics"].items()
        return {str(name): math.nan if value is None else float(value) for name, value in metrics}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} is damaged; remove it and resume, the weights are intact.") from None
