"""The server of the page: loopback only by default, with gradio's unused features disabled.

Reasons: docs/decisions/0006-security-of-the-web-page.md. tests/web tests attacks on a running server.
"""

import contextlib
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.errors import InputError, MambarError
from mambar.image_file import MAX_PIXELS
from mambar.messages import needs_package

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
USER = "mambar"
MIN_PASSWORD_LENGTH = 8
# Features of gradio that the page does not use.
_DISABLED = ("share", "inbrowser", "show_error", "ssr_mode", "mcp_server", "pwa", "run_history", "enable_monitoring")
# Visitors whose last result is cached, and queued requests.
_MAX_VISITORS, _MAX_QUEUED = 100, 64


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A running page: its address, and the function that stops it."""

    address: str
    close: Callable[[], None]


@contextlib.contextmanager
def run_server(
    analyzed_models: Sequence[AnalyzedModel],
    *,
    port: int | None = None,
    password: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[RunningServer]:
    """Serves the page of one or two models from this process until the `with` block ends.

    Without `password`, only this machine can connect. With one, the page listens on all interfaces and requires the
    user `mambar` and that password; it is plain HTTP, so use a TLS proxy. Meanwhile the working directory is an empty
    one and GRADIO_* environment variables are removed. port: None takes a free one from 7860 on. max_pixels: the
    largest upload to decode; larger JPEGs are reduced.

    Raises `InputError` if gradio is missing, the password is too short or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError(needs_package("The page", "gradio", extra="app"))
    if password is not None and len(password) < MIN_PASSWORD_LENGTH:
        raise InputError(f"The password is too short; choose one of at least {MIN_PASSWORD_LENGTH} characters.")
    with _private_directories() as place:
        # gradio reads environment variables when it is imported.
        from mambar.web.page import build_page

        page = _launched(build_page(analyzed_models, max_pixels=max_pixels), place, port, password)
        try:
            yield RunningServer(address=f"http://{LOOPBACK}:{page.server_port}", close=page.close)
        finally:
            page.close(verbose=False)


def wait_for_shutdown() -> None:
    """Blocks until Ctrl-C; at SIGTERM the process ends with exit code 143 after cleaning up."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    never = threading.Event()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        # A signal may be delivered to another thread; the main thread handles it when it wakes.
        while not never.wait(0.5):
            pass
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _private_directories() -> Iterator[Path]:
    """A directory for uploads that only this user can read, and an empty working directory, which gradio may serve."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GRADIO_")}
    # mkdtemp makes the directory 0700.
    with tempfile.TemporaryDirectory(prefix="mambar-page-", ignore_cleanup_errors=True) as directory:
        uploads, empty = Path(directory) / "uploads", Path(directory) / "empty"
        uploads.mkdir(mode=0o700)
        empty.mkdir(mode=0o700)
        own = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
        os.environ.update(own)
        try:
            with contextlib.chdir(empty):
                yield uploads
        finally:
            for name in own:
                os.environ.pop(name, None)
            os.environ.update(kept)


def _launched(page: Any, uploads: Path, port: int | None, password: str | None) -> Any:
    from gradio import themes
    from gradio.route_utils import CustomCORSMiddleware
    from starlette.middleware import Middleware

    from mambar.web.request_filter import OWN_NAMES, RequestFilter
    from mambar.web.views import thumbnails_css

    page.queue(max_size=_MAX_QUEUED, api_open=False)
    css = resources.files("mambar.web").joinpath("page.css").read_text("utf-8")
    hosts = OWN_NAMES if password is None else None
    try:
        page.launch(
            server_name=LOOPBACK if password is None else EVERYWHERE,
            server_port=port,
            auth=None if password is None else [(USER, password)],
            prevent_thread_lock=True,
            quiet=True,
            **dict.fromkeys(_DISABLED, False),
            allowed_paths=[],
            blocked_paths=[],
            footer_links=[],
            strict_cors=True,
            max_file_size="5mb",
            state_session_capacity=_MAX_VISITORS,
            theme=themes.Base(
                primary_hue="cyan", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=css + thumbnails_css("#photographs"),
            app_kwargs={
                "middleware": [Middleware(RequestFilter, uploads=uploads, hosts=hosts)],
                **dict.fromkeys(("docs_url", "redoc_url", "openapi_url")),
            },
        )
    except OSError as error:
        where = f"port={port}" if port is not None else "Every port from 7860 to 7959"
        raise InputError(f"{where} is taken; choose another port.") from error
    # The page needs no CORS; gradio adds its own outside of the filter, where it answers other ports of this machine.
    page.app.user_middleware = [each for each in page.app.user_middleware if each.cls is not CustomCORSMiddleware]
    page.app.middleware_stack = page.app.build_middleware_stack()
    if page.share or page.share_url:
        page.close()
        raise MambarError("gradio shared the page publicly although share=False; the page was closed.")
    return page
