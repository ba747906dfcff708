"""result.json of a finished run: its metrics and what they are from, with a checksum and bound to the recipe."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from mambar import atomic_files
from mambar.errors import CheckpointError
from mambar.json_fields import check_format_version, finite
from mambar.training.checkpoint import checksummed_json
from mambar.training.checkpoint.run_directory import RunDirectory
from mambar.training.result import RunResult

RESULT_NAME: Final = "result.json"
# 1: version 0.1, without a checksum.
RESULT_FORMAT: Final = 2


# Fields of `RunResult` that the file holds beside the metrics.
_FACTS: Final = ("step", "last_step", "num_evaluations", "num_val_images", "num_test_images")


def write_result(directory: RunDirectory, result: RunResult) -> None:
    """Writes result.json: the run in `directory` is finished."""
    tested = {} if result.test_metrics is None else {"test_metrics": finite(result.test_metrics)}
    body = {
        "format_version": RESULT_FORMAT,
        "metrics": finite(result.metrics),
        **tested,
        **{name: getattr(result, name) for name in _FACTS},
        "final_weights": result.recipe.final_weights,
        "recipe_sha256": directory.recipe_sha256[0],
    }
    atomic_files.write_atomically(directory.path / RESULT_NAME, checksummed_json.dumps(body))


def read_result(directory: RunDirectory) -> RunResult | None:
    """The result of a finished run, None if it is not finished; CheckpointError if the file was changed."""
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
        check_format_version(document["format_version"], file, newest=RESULT_FORMAT)
        # Without "last_step", "step" is the last step, whichever step the metrics are from.
        facts = {name: document.get(name) for name in _FACTS} if "last_step" in document else {}
        return RunResult(
            metrics=_from_json(document["metrics"]),
            test_metrics=_from_json(document["test_metrics"]) if "test_metrics" in document else None,
            checkpoint=directory.path / "model.safetensors",
            recipe=directory.recipe,
            already_finished=True,
            **facts,
        )
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} is damaged; remove it and resume, the weights are intact.") from None


def _from_json(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {str(name): math.nan if value is None else float(value) for name, value in metrics.items()}
