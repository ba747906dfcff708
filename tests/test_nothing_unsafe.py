"""P18: no source file calls functions that run data as code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("src", "examples", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "shutil.unpack_archive", "tempfile.mktemp"),
}
BANNED_METHODS = {"extractall", "extract", "load_pickle"}
# keyword → the only values it may have; a value that is no constant is refused as well.
KEYWORDS = {
    "shell": {False},
    "weights_only": {True},
    "allow_pickle": {False},
    "trust_remote_code": {False},
    "verify": {True},
}
# Functions that are safe only with a keyword, which must be written out.
NEEDS = {"torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle"}


def names(tree: ast.Module) -> dict[str, str]:
    """Local name → what was imported under it: `from pickle import loads as take` gives take → pickle.loads."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unsafe(source: str) -> Iterator[str]:
    """One sentence a dangerous place."""
    tree = ast.parse(source)
    known = names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and not isinstance(node.ctx, ast.Store):
            first, dot, rest = ast.unparse(node).partition(".")
            # A banned function is refused by name, called or handed on, under whatever name it was imported.
            name = known.get(first, first) + dot + rest
            if name in BANNED_CALLS:
                yield f"line {node.lineno}: {name}"
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = known.get(first, first) + dot + rest
        if isinstance(node.func, ast.Attribute) and node.func.attr in BANNED_METHODS:
            yield f"line {node.lineno}: {name}"
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in NEEDS and NEEDS[name] not in given:
            yield f"line {node.lineno}: {name} without {NEEDS[name]}="
        for keyword, allowed in KEYWORDS.items():
            if keyword in given:
                value = given[keyword]
                if not (isinstance(value, ast.Constant) and value.value in allowed):
                    yield f"line {node.lineno}: {keyword}={ast.unparse(value)}"


@pytest.mark.rel
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe(path):
    assert list(unsafe(path.read_text("utf-8"))) == []


def test_the_whole_tree_is_read():
    assert len(FILES) > 150
    assert any("torch.load" in path.read_text("utf-8") for path in FILES), "the rules have met no loader at all"


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)",
        "exec(x)",
        "run = eval",
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(f)",
        "from pickle import loads\nloads(f)",
        "from pickle import loads as take\nlist(map(take, f))",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
        "archive.extractall(path)",
        "archive.extract(member)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "import os\nos.system(command)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "requests.get(url, verify=False)",
    ],
)
def test_each_of_these_is_caught(source):
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(f)",
        "re.compile(x)",
        "torch.compile(model)",
    ],
)
def test_these_are_left_alone(source):
    assert not list(unsafe(source))
