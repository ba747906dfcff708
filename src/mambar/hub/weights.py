"""Released weights by model name: repository, accuracy, and a download that is verified at every use."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from mambar.atomic_files import write_atomically
from mambar.cache import optional_cache_directory
from mambar.errors import CheckpointError, InputError
from mambar.hub.config_file import json_bytes
from mambar.hub_network import download_failure, offline_if_unreachable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReleasedWeights:
    """One released checkpoint.

    Attributes:
        file: name of the checkpoint in the repository.
        top1: ImageNet-1k accuracy in percent, as printed in the official README.
        repository: of the Hugging Face hub, "owner/name".
        source: where `top1` is published.
        sha256: of the file; None: that of the first download is stored and verified afterwards.
    """

    file: str
    top1: float
    repository: str = "Wangf3014/Mamba-Reg"
    source: str = "README of github.com/wangf3014/Mamba-Reg (paper v2)"
    sha256: str | None = None


WEIGHTS = {
    f"mambar_{size}_patch16_224": ReleasedWeights(file=f"mambar_{size}_patch16_224.pth", top1=top1)
    for size, top1 in (("small", 81.4), ("base", 83.0), ("large", 83.6))
}


def released_file(name: str) -> Path:
    """The path of a released checkpoint in the Hugging Face cache, downloaded at first use.

    Its sha256 and revision are stored in mambar's cache and verified at every later use. Raises `InputError` if
    no weights were released or the hub cannot be reached, `CheckpointError` if the file has changed.
    """
    if name not in WEIGHTS:
        raise InputError(
            f"No weights of {name} can be downloaded; there are {', '.join(WEIGHTS)}. "
            "Use pretrained=False, or mambar.load_official(PATH) for a file of your own."
        )
    weights = WEIGHTS[name]
    path = _download(name, weights)
    _verify(name, weights, path)
    logger.warning("The weights of %s carry no licence (%s); check whether you may use them.", name, weights.source)
    return path


def _download(name: str, weights: ReleasedWeights) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        with offline_if_unreachable():
            return Path(hf_hub_download(weights.repository, weights.file))
    except Exception as error:  # errors of network, names and permissions have many types
        raise InputError(
            f"The weights of {name} could not be downloaded, looked for {weights.file} of {weights.repository}: "
            f"{download_failure(error)}. "
            "Download the file elsewhere and give its path: mambar predict FILE IMAGE, mambar train RECIPE "
            f"start_from=FILE, mambar.load_official(FILE) or mambar.create_model({name!r}, pretrained=FILE)."
        ) from error


def _verify(name: str, weights: ReleasedWeights, path: Path) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    cache = optional_cache_directory("weights")
    record = None if cache is None else cache / f"{name}.json"
    known = weights.sha256
    if known is None and record is not None and record.is_file():
        known = json.loads(record.read_text("utf-8"))["sha256"]
    if known is not None and actual != known:
        raise CheckpointError(
            f"{path} has sha256 {actual}, but {known} was expected; delete {record} if the file was updated on purpose."
        )
    if record is not None and not record.is_file():
        # The path in the hub's cache is snapshots/REVISION/FILE.
        content = {"format_version": 1, "file": weights.file, "sha256": actual, "revision": path.parent.name}
        write_atomically(record, json_bytes(content))
