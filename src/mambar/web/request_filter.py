"""ASGI filter of the page: own origin, known hosts and routes, bounded request bodies, security headers."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("mambar.web.request_filter")

# The routes that the page uses; gradio has many more (proxy, API pages, recordings, live editing).
_ROUTES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"/",
        r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login|logout|login_check)/?",
        r"/(assets|static)/[\w./@+-]+",
        r"/gradio_api/(startup-events|queue/join|queue/data|upload|upload_progress|reset|cancel|app_id|theme\.css)/?",
        r"/gradio_api/(login_check|user|token)/?",
        r"/gradio_api/heartbeat/\w+",
    )
)
# gradio has inline scripts and styles, and its components compile their templates.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data:; manifest-src 'self'; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
OWN_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
_UPLOAD: Final = "/gradio_api/upload"
_FILE: Final = "/gradio_api/file="
# The largest body of an upload (one image of at most 5 MB, with its multipart header) and of any other request.
_MAX_UPLOAD, _MAX_BODY = 5 * 2**20 + 2**16, 2**20
_MAX_DROPPED = 64 * 2**20
# Headers by which a client could claim another origin; gradio builds addresses from them.
_FORWARDED: Final = re.compile(rb"forwarded|x-forwarded-(?!proto$).*|x-original-.*|x-rewrite-.*|x-gradio-.*")


class RequestFilter:
    """An ASGI application that refuses what the page never requests, and adds security headers to every response.

    Attributes:
        app: The wrapped application.
        uploads: The directory of uploaded files.
        hosts: Accepted names in the Host header; None accepts any name, for a page with a password. Other names are
            used to reach a loopback server from a foreign page (DNS rebinding).
        most_bytes, most_files: Limits of `uploads` together with the uploads being received. Above them, uploads are
            refused until old files are removed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        uploads: Path,
        hosts: Iterable[str] | None = OWN_NAMES,
        most_bytes: int = 200_000_000,
        most_files: int = 200,
    ) -> None:
        self.app = app
        self.uploads = uploads
        self.hosts = None if hosts is None else frozenset(hosts)
        self.most_bytes, self.most_files = most_bytes, most_files
        # Bytes and files of uploads that are being received or written.
        self._pending_bytes, self._pending_files = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # The page needs no websocket.
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*filter(_is_kept, message.get("headers", ())), *_HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self._forward(scope, receive, with_headers)
        except HTTPException as refusal:
            await PlainTextResponse(refusal.detail, refusal.status_code)(scope, receive, with_headers)
        except Exception as error:
            # An invalid request gives one line in the log; the traceback is logged at debug level.
            logger.warning("%s %r failed: %s", scope["method"], scope["path"], type(error).__name__)
            logger.debug("Traceback:", exc_info=True)
            if not started:
                await PlainTextResponse("The request is not valid.", 400)(scope, receive, with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if self.hosts is not None and (len(hosts) != 1 or _without_port(hosts[0]) not in self.hosts):
            raise HTTPException(421, "This page is available under the address it was started with only.")
        path: str = scope["path"]
        own = {f"{scheme}://{host}".lower() for host in hosts for scheme in ("http", "https")}
        if any(origin.lower() not in own for origin in headers.getlist("origin")):
            raise HTTPException(403, "Requests of other pages are refused.")
        # A link to the page may be followed; nothing else is requested by another site or port.
        followed = (scope["method"], path, headers.getlist("sec-fetch-mode")) == ("GET", "/", ["navigate"])
        if not followed and not set(headers.getlist("sec-fetch-site")) <= {"same-origin", "none"}:
            raise HTTPException(403, "Requests of other pages are refused.")
        if not (self._is_upload(path) or any(route.fullmatch(path) for route in _ROUTES)) or ".." in path.split("/"):
            raise HTTPException(404, "There is no such page.")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application with the whole body, which is counted while it arrives."""
        headers = [pair for pair in scope["headers"] if not _FORWARDED.fullmatch(pair[0].lower())]
        scope = {**scope, "headers": headers}
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/") == _UPLOAD
        limit = _MAX_UPLOAD if is_upload else _MAX_BODY
        body, size, files = bytearray(), 0, 0
        full = False
        try:
            async for chunk in Request(scope, receive).stream():
                size += len(chunk)
                if size <= limit and not full:
                    body += chunk
                    self._pending_bytes += len(chunk) if is_upload else 0
                    full = is_upload and self._is_full()
                # A client reads the response only after it has sent its body, so part of the rest is discarded.
                elif size > _MAX_DROPPED:
                    break
            if size > limit:
                raise HTTPException(413, "The request is too large.")
            if is_upload:
                files = _num_parts(scope, body)
                self._pending_files += files
            if full or (is_upload and self._is_full()):
                raise HTTPException(507, "Too many images were uploaded in the last minutes; try again later.")
            await self.app(scope, _replay(bytes(body), receive), send)
        except ClientDisconnect:
            raise HTTPException(400, "The request ended early.") from None
        finally:
            if is_upload:
                self._pending_bytes -= len(body)
                self._pending_files -= files

    def _is_upload(self, path: str) -> bool:
        """Whether the path is a file of the uploads; for an address, gradio would query the name servers."""
        return path.startswith(f"{_FILE}{self.uploads}/") and "\x00" not in path

    def _is_full(self) -> bool:
        sizes = [file.stat().st_size for file in self.uploads.rglob("*") if file.is_file()]
        num_files, num_bytes = len(sizes) + self._pending_files, sum(sizes) + self._pending_bytes
        return max(len(sizes) + 1, num_files) > self.most_files or num_bytes > self.most_bytes


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then the client's further messages."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> Message:
        return next(messages, None) or await receive()

    return replayed


def _num_parts(scope: Scope, body: bytes | bytearray) -> int:
    """The number of parts of a multipart body; the last boundary ends it."""
    kinds = Headers(scope=scope).getlist("content-type")
    boundary = parse_options_header(kinds[0])[1].get(b"boundary") if len(kinds) == 1 else None
    if boundary is None:
        raise HTTPException(400, "An upload needs the type multipart/form-data.")
    return max(body.count(b"--" + boundary) - 1, 1)


def _is_kept(pair: tuple[bytes, bytes]) -> bool:
    """Whether a header of the application is sent: no other page may read a response, so CORS headers are dropped."""
    name = pair[0].lower()
    return name not in dict(_HEADERS) and not name.startswith(b"access-control-")


def _without_port(host: str) -> str:
    return re.sub(r":\d+$", "", host).lower()
