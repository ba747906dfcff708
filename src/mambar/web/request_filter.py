"""What stands before the page: known hosts and routes only, a bound on uploads, headers that keep others out."""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What the page itself asks for; gradio has many more routes (proxy, API pages, recordings, live editing).
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
# Scripts and styles of gradio stand in the page itself, and its components compile their templates.
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


class RequestFilter:
    """An ASGI application around another: refuses what the page never asks for, and adds headers to every answer.

    hosts: the names this server may be called by (None: any, where a password is asked for); other names are how a
    page elsewhere reaches into loopback (DNS rebinding). uploads: the directory they land in; above `most_bytes` or
    `most_files` there, further ones are refused until old ones are removed.
    """

    def __init__(
        self,
        app: App,
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # The page needs no websocket.
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in dict(_HEADERS)]
                message["headers"] = [*kept, *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        names = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        if self.hosts is not None and (len(names) != 1 or _without_port(names[0]) not in self.hosts):
            return 421, "This page answers to the address it was started with only."
        path: str = scope["path"]
        if not (self._is_upload(path) or any(route.fullmatch(path) for route in _ROUTES)) or ".." in path.split("/"):
            return 404, "There is no such page."
        if path.rstrip("/") == _UPLOAD and scope["method"] == "POST" and self._full():
            return 507, "Too many images were uploaded in the last minutes; wait a little."
        return None

    def _is_upload(self, path: str) -> bool:
        """Whether a file of the uploads is asked for; for an address gradio would ask the name servers."""
        return path.startswith(f"{_FILE}{self.uploads}/") and "\x00" not in path

    def _full(self) -> bool:
        sizes = [file.stat().st_size for file in self.uploads.rglob("*") if file.is_file()]
        return len(sizes) >= self.most_files or sum(sizes) >= self.most_bytes


def _without_port(host: str) -> str:
    return re.sub(r":\d+$", "", host).lower()


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
