"""The running page under attack: nothing of this machine leaks, nothing leaves it, and it stays up."""

import concurrent.futures
import contextlib
import http.client
import io
import json
import re
import socket
import stat
import subprocess
import sys
import urllib.parse
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is the extra app")

pytestmark = pytest.mark.slow

_SECRET = "the planted secret of this test"
_LEAKS = (_SECRET.encode(), b"root:x:0:0", b"root:*:", b"[build-system]", b"BEGIN OPENSSH")


def ask(running, method, path, *, body=None, headers=None, host=None):
    """One raw request, its path untouched by any library; gives status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host or f"127.0.0.1:{running.port}")
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def upload(running, data, name="image.png"):
    """The path under which the page keeps an uploaded file, or the status of its refusal."""
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + data + f"\r\n--{border}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
    status, _, answer = ask(running, "POST", "/gradio_api/upload", body=body, headers=kind)
    return json.loads(answer)[0] if status == 200 else status


def configuration(running):
    return json.loads(ask(running, "GET", "/config")[2])


def event(running, target):
    """The number of the event whose trigger is `target` (kind of component, name of event)."""
    found = configuration(running)
    kinds = {each["id"]: each["props"].get("elem_id") or each["type"] for each in found["components"]}
    for dependency in found["dependencies"]:
        for number, name in dependency["targets"]:
            if (kinds.get(number), name) == target:
                return dependency["id"]
    raise AssertionError(target)


def call(running, number, data, session=None):
    """Runs an event as the browser would; gives the messages until it is done."""
    session = session or uuid.uuid4().hex[:12]
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session, "event_data": None}).encode()
    status, _, answer = ask(
        running, "POST", "/gradio_api/queue/join", body=body, headers={"Content-Type": "application/json"}
    )
    if status != 200:
        return status, answer
    _, _, stream = ask(running, "GET", f"/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line[6:]) for line in stream.decode().splitlines() if line.startswith("data: ")]
    return status, messages


def outcome(messages):
    return next(each for each in messages if each["msg"] == "process_completed")


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "image.png", **more}


def png(size=(40, 30)):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


SETTINGS = [3, True, "linear", "tokens"]


def test_traversal_and_foreign_requests_give_nothing_away(running):
    """23 targets by 10 routes by 3 encodings, as in the battery that gradio was tried with."""
    up = "../" * 12
    files = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/cmdline"]
    files.append(str(Path.home() / ".ssh" / "id_rsa"))
    files += [str(running.secret), running.secret.name, "pyproject.toml", ".", "/", "C:\\Windows\\win.ini"]
    places = [*files, *(up + each.lstrip("/") for each in files[:6])]
    places += ["http://192.0.2.1/", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"]
    places += ["//192.0.2.1/x", "http://localhost:22/", "/etc/passwd\x00.png"]
    routes = [
        "/gradio_api/file=",
        "/file=",
        "/gradio_api/file/",
        "/gradio_api/proxy=",
        "/proxy=",
        "/static/",
        "/assets/",
    ]
    routes += ["/gradio_api/stream/", "/svelte/", "/gradio_api/custom_component/"]
    assert (len(places), len(routes)) == (23, 10)
    once = lambda text: urllib.parse.quote(text, safe="")  # noqa: E731
    encodings = [lambda text: urllib.parse.quote(text, safe="/:.\\"), once, lambda text: once(once(text))]
    statuses = []
    for place in places:
        for route in routes:
            for encode in encodings:
                status, _, body = ask(running, "GET", route + encode(place))
                statuses.append(status)
                assert not any(leak in body for leak in _LEAKS), (route, place)
                assert status in (400, 403, 404, 405, 421, 422), (route, place, status)
    assert len(statuses) == 690


def test_the_battery_would_see_a_leak(running):
    """Negative control: a file of the page's own is served, and its content recognised."""
    status, _, body = ask(running, "GET", "/static/img/logo.svg")
    assert status == 200 and b"<svg" in body
    assert any(leak in running.secret.read_bytes() for leak in _LEAKS)


@pytest.mark.parametrize("path", ["/etc/passwd", "SECRET", "/proc/self/environ", "http://192.0.2.1/x.png", "../x", ""])
def test_paths_in_place_of_uploads_are_refused(running, path):
    given = str(running.secret) if path == "SECRET" else path
    for data in (file_data(given), file_data(given, url=given), file_data(None, url="data:image/png;base64,AAAA")):
        status, messages = call(running, event(running, ("upload", "upload")), [data, *SETTINGS])
        assert status != 200 or not outcome(messages)["success"]
        assert _SECRET not in json.dumps(str(messages)) and "root:x" not in str(messages)


@pytest.mark.parametrize("target", [("upload", "upload"), ("photographs", "input")])
def test_nothing_is_fetched_for_a_visitor(running, target):
    """gradio downloads public addresses in place of any component's value; a name would be looked up first."""
    for address in ("http://example.invalid/x.png", "https://192.0.2.1/x.png", "http://127.0.0.1:1/x"):
        for data in (file_data(address), [file_data(address)], {"deep": file_data(address, url=address)}):
            status, messages = call(running, event(running, target), [data, *SETTINGS])
            assert status != 200 or not outcome(messages)["success"]


def test_names_of_photographs_are_looked_up_and_never_opened(running):
    number = event(running, ("photographs", "input"))
    for name in ("/etc/passwd", "../../secret", "astronaut.png", "", None, 3, ["astronaut"], {"path": "/etc/passwd"}):
        status, messages = call(running, number, [name, *SETTINGS])
        assert status != 200 or not outcome(messages)["success"], name
    status, messages = call(running, number, ["coffee", *SETTINGS])
    assert outcome(messages)["success"] and "coffee" in str(outcome(messages)["output"])


def test_settings_without_sense_do_no_harm(running):
    number = event(running, ("photographs", "input"))
    strange = [[-1e9, 1, "x", None], [1e300, "<b>", 3, []], [None, None, None, None], ["7", {}, "linear", "tokens"]]
    for settings in strange:
        status, messages = call(running, number, ["moon", *settings])
        assert status != 200 or "<b>" not in str(outcome(messages))
    assert outcome(call(running, number, ["moon", *SETTINGS])[1])["success"]


def bomb(side=30_000):
    """A valid PNG of 900 megapixels in a few kilobytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    line = bytes(1 + side // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["bomb", "svg", "text", "empty", "gif"])
def test_hostile_images_are_refused_in_a_line(running, kind):
    data = {
        "bomb": bomb(),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "text": b"hello",
        "empty": b"",
        "gif": b"GIF89a" + bytes(40),
    }[kind]
    before = memory(running)
    path = upload(running, data, f"x.{kind}")
    status, messages = call(running, event(running, ("upload", "upload")), [file_data(path), *SETTINGS])
    done = outcome(messages)
    assert status == 200 and not done["success"]
    assert re.search("The image (is empty|cannot be read|has more than 178000000 pixels)", str(done["output"]))
    assert "Traceback" not in str(done) and str(running.temporary) not in str(done)
    assert memory(running) - before < 300e6


def memory(running):
    """Resident bytes of the page's process."""
    child = open(f"/proc/{running.process.pid}/task/{running.process.pid}/children", encoding="utf-8").read().split()[0]  # noqa: PTH123, SIM115
    line = next(line for line in open(f"/proc/{child}/status", encoding="utf-8") if line.startswith("VmRSS"))  # noqa: PTH123, SIM115
    return int(line.split()[1]) * 1024


def test_large_and_many_uploads_are_bounded(running):
    assert upload(running, bytes(6_000_000)) == 413
    name = upload(running, png(), "../../../../tmp/<script>evil.png")
    assert str(running.temporary) in name and ".." not in name and "<" not in name


def test_a_request_of_many_files_is_refused_before_it_is_stored(running):
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body = (head + b"x\r\n") * 300 + f"--{border}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
    before = sum(path.is_file() for path in running.temporary.rglob("*"))
    assert ask(running, "POST", "/gradio_api/upload", body=body, headers=kind)[0] == 507
    assert sum(path.is_file() for path in running.temporary.rglob("*")) == before
    assert isinstance(upload(running, png()), str)


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": origin} for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "http://localhost:9")),
        *({"Sec-Fetch-Site": site} for site in ("cross-site", "same-site")),
    ],
    ids=str,
)
def test_requests_of_other_pages_are_refused(running, headers):
    border = uuid.uuid4().hex
    body = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--{border}--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
    before = sum(path.is_file() for path in running.temporary.rglob("*"))
    status, answer, _ = ask(running, "POST", "/gradio_api/upload", body=body.encode(), headers={**kind, **headers})
    assert status == 403 and sum(path.is_file() for path in running.temporary.rglob("*")) == before
    assert not any(name.lower().startswith("access-control-") for name in answer)
    preflight = {**headers, "Access-Control-Request-Method": "POST"}
    status, answer, _ = ask(running, "OPTIONS", "/gradio_api/upload", headers=preflight)
    assert status == 403 and not any(name.lower().startswith("access-control-") for name in answer)
    own = {"Origin": f"http://127.0.0.1:{running.port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(running, "POST", "/gradio_api/upload", body=body.encode(), headers={**kind, **own})[0] == 200


def test_a_forwarded_host_is_not_used(running):
    for name in ("X-Forwarded-Host", "Forwarded"):
        for path in ("/", "/config"):
            status, _, body = ask(running, "GET", path, headers={name: "host=evil.example"})
            assert status == 200 and b"evil.example" not in body


def test_bad_requests_leave_no_traceback_in_the_log(running):
    number = event(running, ("upload", "upload"))
    json_type = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b'{"data": 1}', b'{"fn_index": -1, "data": [], "session_hash": "a"}'):
        assert ask(running, "POST", "/gradio_api/queue/join", body=body, headers=json_type)[0] >= 400
    for path in ("/gradio_api/queue/data", "/gradio_api/upload_progress", "/gradio_api/queue/data?session_hash=%00"):
        with contextlib.suppress(http.client.IncompleteRead):
            ask(running, "GET", path)
    for kind in ("text/plain", "multipart/form-data", "multipart/form-data; boundary=x"):
        assert ask(running, "POST", "/gradio_api/upload", body=b"--y", headers={"Content-Type": kind})[0] >= 400
    for data in ([], [1, 2, 3], ["x", *SETTINGS], [{"path": 1}, *SETTINGS], [file_data("/etc/passwd"), *SETTINGS]):
        status, messages = call(running, number, data)
        assert status >= 400 or not outcome(messages)["success"]
    assert "Traceback" not in running.log.read_text("utf-8")


def test_only_this_machine_by_its_own_name(running):
    assert ask(running, "GET", "/")[0] == 200
    for host in ("evil.example", f"evil.example:{running.port}", "127.0.0.1.evil.example"):
        assert ask(running, "GET", "/", host=host)[0] == 421
    for origin in ("http://evil.example", "null"):
        _, headers, _ = ask(running, "GET", "/config", headers={"Origin": origin})
        assert headers.get("access-control-allow-origin") not in (origin, "*")
    listening = subprocess.run(
        ["ss", "-Hltn", f"sport = :{running.port}"], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if listening.returncode == 0:
        assert listening.stdout.split()[3] == f"127.0.0.1:{running.port}"


def test_headers_and_closed_doors(running):
    _, headers, page = ask(running, "GET", "/")
    lower = {name.lower(): value for name, value in headers.items()}
    assert lower["x-frame-options"] == "DENY" and "frame-ancestors 'none'" in lower["content-security-policy"]
    for path in ("/openapi.json", "/docs", "/gradio_api/info", "/gradio_api/openapi.json", "/monitoring"):
        assert ask(running, "GET", path)[0] == 404
    for secret in (str(running.temporary), str(running.secret.parent)):
        assert secret.encode() not in page and secret.encode() not in ask(running, "GET", "/config")[2]
    # Nothing in the page is loaded from elsewhere.
    loaded = re.findall(rb'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', page)
    assert loaded and not [each for each in loaded if b"//" in each]


def test_the_directory_of_uploads_is_private(running):
    places = list(running.temporary.glob("mambar-page-*"))
    assert len(places) == 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in (places[0], *places[0].iterdir())} == {0o700}


def test_fifty_at_once(running):
    number = event(running, ("upload", "upload"))
    path = upload(running, png())

    def visit(_):
        status, messages = call(running, number, [file_data(path), *SETTINGS])
        return status == 200 and outcome(messages)["success"]

    before = memory(running)
    with concurrent.futures.ThreadPoolExecutor(50) as visitors:
        assert sum(visitors.map(visit, range(50))) == 50
    assert memory(running) - before < 300e6


def test_old_uploads_are_removed(running, tmp_path):
    """The same page, but for the times: looked after each second, kept for one."""
    code = (
        "import sys, time, pathlib, urllib.request\n"
        "from mambar.analysis.analyzed_model import open_model\n"
        "from mambar.web import page, server\n"
        "page._CLEANUP_INTERVAL = page._UPLOAD_LIFETIME = 1\n"
        "with server.run_server([open_model(sys.argv[1])], port=int(sys.argv[2])) as served:\n"
        '    head = b\'Content-Disposition: form-data; name="files"; filename="a.png"\'\n'
        "    body = b'--x\\r\\n' + head + b'\\r\\n\\r\\nabc\\r\\n--x--\\r\\n'\n"
        "    kind = {'Content-Type': 'multipart/form-data; boundary=x'}\n"
        "    request = urllib.request.Request(served.address + '/gradio_api/upload', body, kind)\n"
        "    import json; path = pathlib.Path(json.load(urllib.request.urlopen(request))[0])\n"
        "    print('there', path.is_file())\n"
        "    for _ in range(120):\n"
        "        if not path.exists(): break\n"
        "        time.sleep(0.5)\n"
        "    print('gone', not path.exists())\n"
    )
    command = [sys.executable, "-c", code, str(running.secret.parent.parent / "vim"), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, encoding="utf-8")
    assert done.stdout.split() == ["there", "True", "gone", "True"], done.stderr


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def foreign(lines):
    """The addresses outside loopback in a trace of strace."""
    seen = re.findall(r'sin6?_addr=inet_(?:addr\("|pton\(AF_INET6, ")([^"]+)"|inet_pton\(AF_INET6, "([^"]+)"', lines)
    return {a or b for a, b in seen} - {"127.0.0.1", "::1", "0.0.0.0", "::"} | set(
        re.findall(r'bind\(\d+, \{sa_family=AF_INET6?, [^}]*"(0\.0\.0\.0|::)"', lines)
    )


def test_nothing_left_this_machine(running):
    """Runs after the attacks above; strace has watched the page since its start."""
    text = running.trace.read_text(errors="replace", encoding="utf-8")
    assert "bind(" in text and "127.0.0.1" in text
    assert foreign(text) == set()


def test_strace_would_see_it(tmp_path):
    """Negative control: a connection elsewhere and an open door are seen."""
    code = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: s.connect(('192.0.2.1', 9))\nexcept OSError: pass\n"
        "socket.socket().bind(('0.0.0.0', 0))"
    )
    command = ["strace", "-f", "-qq", "-e", "trace=connect,bind", "-o", str(tmp_path / "trace"), sys.executable, "-c"]
    subprocess.run([*command, code], check=True)
    assert foreign((tmp_path / "trace").read_text("utf-8")) == {"192.0.2.1", "0.0.0.0"}
