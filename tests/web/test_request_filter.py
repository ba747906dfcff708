"""What stands before the page lets through what the page asks for, and nothing else."""

import asyncio

import pytest

from mambar.web.request_filter import RequestFilter


def ask(guard, path="/", *, host="127.0.0.1:7860", method="GET", kind="http"):
    """The status and headers of one request."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    hosts = [] if host is None else [(b"host", each.encode()) for each in ([host] if isinstance(host, str) else host)]
    scope = {"type": kind, "path": path, "method": method, "headers": hosts}
    asyncio.run(guard(scope, receive, send))
    if kind != "http":
        return sent[0]
    return sent[0]["status"], dict(sent[0]["headers"])


async def inner(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def guard(tmp_path):
    return RequestFilter(inner, uploads=tmp_path, most_bytes=100, most_files=3)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/assets/index-DphvyggB.js", "/static/img/logo.svg", "/login"),
        *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/reset"),
        "/gradio_api/heartbeat/abc123",
    ],
)
def test_what_the_page_asks_for(guard, path):
    assert ask(guard, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/info", "/gradio_api/openapi.json", "/openapi.json", "/docs", "/monitoring", "/gradio_api/run/x"),
        *("/gradio_api/call/x", "/gradio_api/proxy=http://192.0.2.1/", "/proxy=x\x00", "/gradio_api/vibe-edit"),
        *("/gradio_api/stream/x", "/gradio_api/process_recording", "/gradio_api/component_server", "/file=/etc/passwd"),
        *("/assets/../../../etc/passwd", "/static/..", "/gradio_api/file=/etc/passwd", "//", "/gradio_api/"),
        *("/gradio_api/file=http://192.0.2.1/", "/gradio_api/file=//192.0.2.1/x", "/gradio_api/file="),
    ],
)
def test_everything_else_is_not_there(guard, path):
    status, headers = ask(guard, path)
    assert status == 404 and headers[b"x-frame-options"] == b"DENY"


def test_of_files_only_the_uploads(guard, tmp_path):
    inside = f"/gradio_api/file={tmp_path}"
    assert ask(guard, f"{inside}/ab12/image.png")[0] == 200
    for path in (f"{inside}/../x", f"{inside}x/y", f"{inside}", f"{inside}/x\x00.png"):
        assert ask(guard, path)[0] == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "LOCALHOST", "[::1]:7860"])
def test_own_names(guard, host):
    assert ask(guard, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", None, ["127.0.0.1", "evil"], "0.0.0.0"]
)
def test_another_name_is_refused(guard, host):
    assert ask(guard, host=host)[0] == 421


def test_with_a_password_any_name_will_do(tmp_path):
    assert ask(RequestFilter(inner, uploads=tmp_path, hosts=None), host="lab.example")[0] == 200


def test_headers_stand_on_every_answer(guard):
    _, headers = ask(guard)
    assert headers[b"x-frame-options"] == b"DENY" and b"X-Frame-Options" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"no-referrer"
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy


def test_uploads_are_bounded(guard, tmp_path):
    assert ask(guard, "/gradio_api/upload", method="POST")[0] == 200
    (tmp_path / "large").write_bytes(bytes(100))
    assert ask(guard, "/gradio_api/upload", method="POST")[0] == 507
    assert ask(guard, "/gradio_api/upload/", method="POST")[0] == 507
    assert ask(guard, "/")[0] == 200
    (tmp_path / "large").unlink()
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "small").write_bytes(b"x")
    assert ask(guard, "/gradio_api/upload", method="POST")[0] == 507


def test_websockets_are_closed(guard):
    assert ask(guard, kind="websocket")["type"] == "websocket.close"
