"""The request filter passes what the page requests, and nothing else."""

import asyncio

import pytest

from mambar.web.request_filter import RequestFilter

BOUNDARY = (b"content-type", b"multipart/form-data; boundary=x")


def parts(count, size=1):
    """The body of an upload of `count` files."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return b"".join(head + bytes(size) + b"\r\n" for _ in range(count)) + b"--x--\r\n"


def upload(guard, body, path="/gradio_api/upload"):
    return ask(guard, path, method="POST", headers=[BOUNDARY], body=body)[0]


def ask(guard, path="/", *, host="127.0.0.1:7860", method="GET", kind="http", headers=(), body=b""):
    """The status and headers of one request; its body arrives in pieces."""
    sent = []

    async def send(message):
        sent.append(message)

    pieces = [body[start : start + 4096] for start in range(0, len(body), 4096)] or [b""]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    hosts = [] if host is None else [(b"host", each.encode()) for each in ([host] if isinstance(host, str) else host)]
    scope = {"type": kind, "path": path, "method": method, "headers": [*hosts, *headers]}
    asyncio.run(guard(scope, receive, send))
    if kind != "http":
        return sent[0]
    return sent[0]["status"], dict(sent[0]["headers"])


async def inner(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def guard(tmp_path):
    return RequestFilter(inner, uploads=tmp_path, most_bytes=1000, most_files=3)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/assets/index-DphvyggB.js", "/static/img/logo.svg", "/login"),
        *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/reset"),
        "/gradio_api/heartbeat/abc123",
    ],
)
def test_what_the_page_requests(guard, path):
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
def test_other_routes_are_not_found(guard, path):
    status, headers = ask(guard, path)
    assert status == 404 and headers[b"x-frame-options"] == b"DENY"


def test_only_uploaded_files_are_served(guard, tmp_path):
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


def test_any_name_is_accepted_with_a_password(tmp_path):
    assert ask(RequestFilter(inner, uploads=tmp_path, hosts=None), host="lab.example")[0] == 200


def test_security_headers_are_on_every_response(guard):
    _, headers = ask(guard)
    assert headers[b"x-frame-options"] == b"DENY" and b"X-Frame-Options" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"no-referrer"
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy


def test_uploads_are_bounded(guard, tmp_path):
    assert upload(guard, parts(1)) == 200
    (tmp_path / "large").write_bytes(bytes(1000))
    assert upload(guard, parts(1)) == 507
    assert upload(guard, parts(1), "/gradio_api/upload/") == 507
    assert ask(guard, "/")[0] == 200
    (tmp_path / "large").unlink()
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "small").write_bytes(b"x")
    assert upload(guard, parts(1)) == 507


def test_files_and_bytes_of_the_request_itself_are_counted(guard):
    assert upload(guard, parts(3)) == 200 and upload(guard, parts(4)) == 507
    assert upload(guard, parts(1, size=1000)) == 507
    # Nothing of a finished or refused request stays counted.
    assert upload(guard, parts(3)) == 200


def test_bodies_are_bounded_while_they_arrive(tmp_path):
    large = RequestFilter(inner, uploads=tmp_path)
    assert upload(large, parts(1, size=5_000_000)) == 200 and upload(large, parts(1, size=6_000_000)) == 413
    assert ask(large, "/gradio_api/queue/join", method="POST", body=bytes(2**20 + 1))[0] == 413
    assert ask(large, "/gradio_api/upload", method="POST", body=parts(1))[0] == 400


@pytest.mark.parametrize("origin", ["http://127.0.0.1:7860", "https://127.0.0.1:7860"])
def test_own_origin(guard, origin):
    assert ask(guard, headers=[(b"origin", origin.encode()), (b"sec-fetch-site", b"same-origin")])[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        *([(b"origin", value)] for value in (b"http://evil.example", b"null", b"http://127.0.0.1:9999", b"")),
        [(b"origin", b"http://localhost:7860")],
        [(b"origin", b"http://127.0.0.1:7860"), (b"origin", b"null")],
        *([(b"sec-fetch-site", value)] for value in (b"cross-site", b"same-site")),
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/")])
def test_other_pages_are_refused(guard, method, path, headers):
    assert ask(guard, path, method=method, headers=headers)[0] == 403


def test_a_link_to_the_page_may_be_followed(guard):
    headers = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]
    assert ask(guard, headers=headers)[0] == 200 and ask(guard, "/config", headers=headers)[0] == 403


def test_forwarded_names_and_cors_headers_are_dropped(tmp_path):
    seen = []

    async def app(scope, receive, send):
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Access-Control-Allow-Origin", b"*")]})
        await send({"type": "http.response.body", "body": b""})

    sent = [(b"x-forwarded-host", b"evil.example"), (b"forwarded", b"host=evil"), (b"x-forwarded-proto", b"https")]
    _, headers = ask(RequestFilter(app, uploads=tmp_path), headers=sent)
    assert seen == [b"host", b"x-forwarded-proto"]
    assert not any(name.lower().startswith(b"access-control-") for name in headers)


def test_an_error_in_the_application_is_one_line(tmp_path, caplog):
    async def app(scope, receive, send):
        raise KeyError("session_hash")

    assert ask(RequestFilter(app, uploads=tmp_path), "/gradio_api/queue/data")[0] == 400
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert record.exc_info is None and record.getMessage() == "GET '/gradio_api/queue/data' failed: KeyError"


def test_websockets_are_closed(guard):
    assert ask(guard, kind="websocket")["type"] == "websocket.close"
