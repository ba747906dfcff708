"""`mambar serve`: what is refused before anything listens; public only with a password."""

import os
import socket
import subprocess
import sys

import pytest

from mambar.errors import InputError
from mambar.web import server


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("no/where",), "There is no model 'no/where'"),
        (("--port", "0"), "--port"),
        (("port=70000",), "--port"),
        (("prot=7860",), "did you mean '--port'"),
        (("compare=nothing",), "There is no model 'nothing'"),
        (("--public",), "set MAMBAR_PASSWORD"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(mambar_command, trained, monkeypatch, arguments, part):
    monkeypatch.delenv("MAMBAR_PASSWORD", raising=False)
    model = () if arguments == ("no/where",) else (trained,)
    code, out, err = mambar_command("serve", *model, *arguments)
    assert code == 2 and part in err and err.count("\n") == 1 and out == ""


def test_a_short_password_opens_nothing(mambar_command, trained, monkeypatch):
    monkeypatch.setenv("MAMBAR_PASSWORD", "short")
    code, _, err = mambar_command("serve", trained, "--public")
    assert code == 2 and "at least 8 characters" in err
    with pytest.raises(InputError, match="at least 8"), server.run_server([], password="short"):
        raise AssertionError


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"\(extra app\); install with: pip install gradio"), server.run_server([]):
        raise AssertionError


@pytest.mark.slow
def test_public_asks_for_the_password_and_a_taken_port_is_said(trained, tmp_path):
    pytest.importorskip("gradio", reason="gradio is the extra app")
    probe = (
        "import json, sys, urllib.request, urllib.error\n"
        "from mambar.analysis.analyzed_model import open_model\n"
        "from mambar.errors import InputError\n"
        "from mambar.web.server import run_server\n"
        "analyzed_models = [open_model(sys.argv[1])]\n"
        "with run_server(analyzed_models, port=int(sys.argv[2]), password='correct horse') as page:\n"
        "    try: urllib.request.urlopen(page.address + '/config')\n"
        "    except urllib.error.HTTPError as error: print('config', error.code)\n"
        "    text = urllib.request.urlopen(page.address + '/').read().decode()\n"
        "    print('asks', 'auth_required' in text, 'astronaut' in text)\n"
        "    for word in ('wrong horse', 'correct horse'):\n"
        "        form = f'username=mambar&password={word}'.replace(' ', '+').encode()\n"
        "        try: print('login', urllib.request.urlopen(page.address + '/login', form).status)\n"
        "        except urllib.error.HTTPError as error: print('login', error.code)\n"
        "    import os; print('here', os.listdir('.'))\n"
        "    try:\n"
        "        with run_server(analyzed_models, port=int(sys.argv[2])): print('two on one port')\n"
        "    except InputError as error: print(error)\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_NAME": "0.0.0.0"}
    done = subprocess.run(
        [sys.executable, "-c", probe, str(trained), str(port)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "config 401" in done.stdout and "asks True False" in done.stdout
    assert "login 400" in done.stdout and "login 200" in done.stdout
    assert "here []" in done.stdout and f"port={port} is taken" in done.stdout
