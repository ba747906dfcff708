"""Weights by model name: those released with the paper and those in `weights/`, verified at every use."""

import hashlib
import json
import logging
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mambar.atomic_files import write_atomically
from mambar.cache import cache_directory, optional_cache_directory
from mambar.errors import CheckpointError, InputError
from mambar.hub.config_file import CONFIG, json_bytes
from mambar.hub_network import download_failure, offline_if_unreachable
from mambar.messages import one_line

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


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """A model that was trained here, as a model directory in the folder `weights/` of the repository.

    Attributes:
        data: Name of the training data.
        top1: Accuracy in percent on the test split of the data.
        classes: Names of the classes.
        crop_pct: Fraction of the resized image's side that the evaluation crop keeps.
        licence: SPDX identifier of the weights.
        sha256: Of config.json, which contains the sha256 of the weights.
    """

    data: str
    top1: float
    classes: tuple[str, ...]
    crop_pct: float
    licence: str
    sha256: str


_CLOTHES: Final = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
# Name with the data as tag, as in timm → the model. The cards are in weights/NAME/README.md.
TRAINED: dict[str, TrainedWeights] = {
    name: TrainedWeights(
        data="clothing", top1=top1, classes=_CLOTHES, crop_pct=0.95, licence="Apache-2.0", sha256=sha256
    )
    for name, top1, sha256 in (
        (
            "mambar_tiny_patch16_224.clothing",
            67.7,
            "78af92502d4b99c497dc18eac78281e2a7b39280edabec74341e43e0fba7886b",
        ),
        (
            "vim_tiny_patch16_224.clothing",
            69.4,
            "b65f86e56447dc31d3a1e6bdb3ffc1abfc87e50e53b631f7618332b48126388d",
        ),
    )
}
# Environment variable: folder or URL of the model directories; by default the folder `weights/` of a checkout.
WEIGHTS_PLACE: Final = "MAMBAR_WEIGHTS"
_CHECKOUT: Final = Path(__file__).resolve().parents[3] / "weights"
_ADVICE: Final = f"set {WEIGHTS_PLACE} to the folder weights/ of a checkout of mambar, or to its URL"
_TIMEOUT_SECONDS: Final = 20
# A damaged or hostile server must not fill the memory.
_MAX_BYTES: Final = 1 << 28


def released_file(name: str) -> Path:
    """The path of a released checkpoint in the Hugging Face cache, downloaded at first use.

    Its sha256 and revision are stored in mambar's cache and verified at every later use. Raises `InputError` if
    no weights were released or the hub cannot be reached, `CheckpointError` if the file has changed.
    """
    if name not in WEIGHTS:
        raise InputError(
            f"No weights of {name} can be downloaded; there are {', '.join((*WEIGHTS, *TRAINED))}. "
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


def trained_directory(name: str) -> Path:
    """The model directory of a key of `TRAINED`; from a URL it is downloaded once into mambar's cache.

    MAMBAR_WEIGHTS is the folder or URL that contains the model directories, by default `weights/` of the checkout.
    Raises `InputError` if the model is not there, `CheckpointError` if a file differs from its checksum.
    """
    place = os.environ.get(WEIGHTS_PLACE) or str(_CHECKOUT)
    if "://" in place:
        return _downloaded(name, f"{place.rstrip('/')}/{name}")
    directory = Path(place).expanduser() / name
    if not (directory / CONFIG).is_file():
        raise InputError(f"There are no weights of {name} in {place}; {_ADVICE}.")
    _require_sha256((directory / CONFIG).read_bytes(), TRAINED[name].sha256, origin=str(directory / CONFIG))
    return directory


def _downloaded(name: str, url: str) -> Path:
    directory = cache_directory("weights", name)
    config, expected = directory / CONFIG, TRAINED[name].sha256
    # config.json is written last: it is complete only beside complete weights, which `mambar.load` verifies.
    if not config.is_file() or hashlib.sha256(config.read_bytes()).hexdigest() != expected:
        content = _read_url(name, f"{url}/{CONFIG}")
        _require_sha256(content, expected, origin=f"{url}/{CONFIG}")
        recorded = json.loads(content)["mambar"]["weights"]
        file = Path(recorded["file"]).name
        logger.info("Downloading %s/%s (%.1f MB).", url, file, recorded["bytes"] / 1e6)
        weights = _read_url(name, f"{url}/{file}")
        _require_sha256(weights, recorded["sha256"], origin=f"{url}/{file}")
        write_atomically(directory / file, weights)
        write_atomically(config, content)
    return directory


def _read_url(name: str, url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{WEIGHTS_PLACE}: {url} is neither a folder nor an http or https address; {_ADVICE}.")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            content = answer.read(_MAX_BYTES + 1)
    except Exception as error:  # errors of network, addresses and protocols have many types
        raise InputError(
            f"The weights of {name} could not be downloaded from {url}: {one_line(error, limit=160).rstrip('.')}; "
            f"{_ADVICE}."
        ) from error
    if len(content) > _MAX_BYTES:
        raise CheckpointError(f"{url} has more than {_MAX_BYTES} bytes; {_ADVICE}.")
    return content


def _require_sha256(content: bytes, expected: str, *, origin: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise CheckpointError(
            f"{origin} has sha256 {actual}, but {expected} was expected; use the weights/ of this version of mambar."
        )
