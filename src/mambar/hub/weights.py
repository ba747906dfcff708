"""Released weights by name: where they are, what they reach, and their download on the user's order."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from mambar.cache import cache_directory
from mambar.errors import CheckpointError, InputError
from mambar.hub.files import json_bytes, write_atomically

logger = logging.getLogger(__name__)

_REPOSITORY = "Wangf3014/Mamba-Reg"


@dataclass(frozen=True, kw_only=True)
class ReleasedWeights:
    """One released file. top1: ImageNet-1k accuracy in percent as the official README prints it.

    sha256 is None where it is not known to us; then the hash of the first download is kept and verified later.
    """

    repository: str
    file: str
    top1: float
    source: str
    sha256: str | None = None


def _released(size: str, top1: float) -> ReleasedWeights:
    return ReleasedWeights(
        repository=_REPOSITORY,
        file=f"mambar_{size}_patch16_224.pth",
        top1=top1,
        source="README of github.com/wangf3014/Mamba-Reg (paper v2)",
    )


WEIGHTS: dict[str, ReleasedWeights] = {
    "mambar_small_patch16_224": _released("small", 81.4),
    "mambar_base_patch16_224": _released("base", 83.0),
    "mambar_large_patch16_224": _released("large", 83.6),
}


def released_file(name: str) -> Path:
    """The path of the released checkpoint of a model, downloaded once.

    The file stays in the Hugging Face cache; its sha256 and revision are noted in ours and verified at every
    later use. Raises `InputError` where nothing was released or the hub cannot be reached, `CheckpointError`
    where the file is not the one that was first downloaded.
    """
    if name not in WEIGHTS:
        raise InputError(
            f"No weights were released for {name}; there are {', '.join(WEIGHTS)}. "
            "Use pretrained=False, or mambar.load_official(PATH) for a file of your own."
        )
    weights = WEIGHTS[name]
    path = _download(name, weights)
    _verify(name, weights, path)
    logger.warning("The weights of %s carry no licence (%s); they are for you to judge.", name, weights.source)
    return path


def _download(name: str, weights: ReleasedWeights) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(weights.repository, weights.file))
    except Exception as error:  # hub errors are many (network, names, rights); each is one line for the user
        raise InputError(
            f"The weights of {name} are not here and could not be fetched: looked for {weights.file} of "
            f"{weights.repository} in the Hugging Face cache (HF_HOME) and on the hub ({type(error).__name__}). "
            "Download the file elsewhere and pass its path to mambar.load_official."
        ) from error


def _verify(name: str, weights: ReleasedWeights, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    actual = digest.hexdigest()
    note = cache_directory("weights") / f"{name}.json"
    known = weights.sha256
    if known is None and note.is_file():
        known = json.loads(note.read_text("utf-8"))["sha256"]
    if known is not None and actual != known:
        raise CheckpointError(
            f"{path} has sha256 {actual}, but {known} was expected; delete {note} if the file was renewed on purpose."
        )
    if not note.is_file():
        # The hub's cache keeps files below snapshots/REVISION/.
        content = {"format_version": 1, "file": weights.file, "sha256": actual, "revision": path.parent.name}
        write_atomically(note, json_bytes(content))
