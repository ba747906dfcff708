"""The connection to the Hugging Face hub."""

import contextlib
import threading
from collections.abc import Iterator

from mambar.messages import one_line

# Seconds until the hub counts as unreachable.
_TIMEOUT = 3.0


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """A context in which downloads read the local cache only, if the hub does not answer within 3 seconds.

    The client of the hub would try again for about a minute before it raises the same error.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def download_failure(error: Exception) -> str:
    """Why a download failed, on one line and without a full stop."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "the Hugging Face hub does not answer, and its cache (HF_HOME) has no copy"
    return one_line(error, limit=160).rstrip(".") or type(error).__name__


def _answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[object] = []

    def ask() -> None:
        # Errors of name resolution, proxies and certificates have many types.
        with contextlib.suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=_TIMEOUT))

    # In a thread, because the resolution of a name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    return bool(answers)
