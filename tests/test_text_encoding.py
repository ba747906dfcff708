"""Every text file and text stream is opened with an explicit encoding, so that no locale changes what is read."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    path for folder in ("src", "tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]
# Position of the encoding, and of the mode for functions that also open binary files.
ENCODING = {"read_text": 0, "write_text": 1, "TextIOWrapper": 1, "FileHandler": 2}
MODE = {"fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
# A call of `open` with another keyword opens no file.
FILE_KEYWORDS = {"file", "mode", "buffering", "errors", "newline", "closefd", "opener"}
BINARY_BY_DEFAULT = {"NamedTemporaryFile", "TemporaryFile"}


def missing_encodings(tree: ast.AST) -> list[ast.Call]:
    """Calls that read or write text with the encoding of the locale."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _needs_encoding(node)]


def _needs_encoding(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if any(ast.unparse(keywords[name]) == "True" for name in ("text", "universal_newlines") if name in keywords):
        return True
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ENCODING:
        return len(call.args) <= ENCODING[name]
    if name == "open":
        if not keywords.keys() <= FILE_KEYWORDS:
            return False
        position = 1 if isinstance(call.func, ast.Name) else 0
    elif name in MODE:
        position = MODE[name]
    else:
        return False
    mode = keywords.get("mode", call.args[position] if len(call.args) > position else None)
    if mode is None:
        return name not in BINARY_BY_DEFAULT
    # The first argument of os.open, tarfile.open or Image.open is no mode.
    is_mode = isinstance(mode, ast.Constant) and re.fullmatch("[rwxa][bt+]*", str(mode.value))
    return bool(is_mode) and "b" not in str(mode.value)  # type: ignore[union-attr]


def test_text_is_read_and_written_with_a_named_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in FILES
        for call in missing_encodings(ast.parse(path.read_text("utf-8")))
    ]
    assert not found, f"pass encoding='utf-8', or open the file in binary mode: {', '.join(found)}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open('a')", True),
        ("path.open()", True),
        ("path.open(mode='wb')", False),
        ("os.open(path, flags)", False),
        ("tarfile.open(path, 'r:')", False),
        ("metrics.open(step=3)", False),
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("os.fdopen(descriptor, 'wb')", False),
    ],
)
def test_calls_without_an_encoding_are_found(source, found):
    assert bool(missing_encodings(ast.parse(source))) == found


# Under an ASCII locale; EncodingWarning reports text that mambar opens with the encoding of that locale.
FIRST_FORWARD = """
import locale, warnings
encoding = locale.getpreferredencoding(False)
assert encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"), encoding
warnings.filterwarnings("error", category=EncodingWarning, module="mambar")
import torch
from mambar.models.config import VisionMambaConfig
from mambar.models.vision_mamba import VisionMamba
from mambar.ops.cuda import program
model = VisionMamba(VisionMambaConfig(img_size=32, patch_size=8, embed_dim=48, depth=1, num_classes=3)).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
print(all(program.read_source(name) for name in ("conv", "gate", "scan_backward", "scan_forward")))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the locale is set through POSIX variables")
def test_the_first_forward_and_kernel_sources_need_no_locale(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    environment = {**os.environ, **plain, "PYTHONWARNDEFAULTENCODING": "1", "MAMBAR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", FIRST_FORWARD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:2] == ["(1, 3)", "True"]
