"""Packages import only packages of lower layers, no modules import each other in a cycle, and all have docstrings.

Counted are imports at the top, in functions and by string. Strings: `importlib.import_module("mambar.…")`, also with
an f-string, and any other literal that is the dotted path of a module, such as those of `Backend` rows. Not counted:
imports under TYPE_CHECKING in the cycle test, and the top `mambar/__init__`. The latter is lazy: it maps every public
name to its package, and no module of a package may import it.
"""

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "mambar"

# From the highest layer to the lowest; packages of one layer do not import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"paper"},
    {"recipes"},
    {"segmentation", "detection", "pretraining", "web"},
    {"training"},
    {"analysis", "bench"},
    {"evaluation"},
    {"hub", "export"},
    {"models"},
    {"nn"},
    {"ops", "data"},
    {"image_paths"},
    {
        "atomic_files",
        "cache",
        "memory",
        "deprecated",
        "device",
        "hub_network",
        "image_file",
        "json_fields",
        "user_module",
    },
    {"errors", "messages", "version"},
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}

FILES = sorted(ROOT.rglob("*.py"))
BANNED_NAMES = {"utils", "util", "common", "helpers", "misc", "tools"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, by statement or by string; `*` for the variable parts of an f-string."""
    loggers = {node.args[0] for node in ast.walk(tree) if _calls(node, "getLogger") and node.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write it in full."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""
        elif isinstance(node, ast.Constant) and node not in loggers and node.value in MODULES:
            yield node.value
        elif _calls(node, "import_module") and isinstance(node.args[0], ast.JoinedStr):
            parts = node.args[0].values
            assert isinstance(parts[0], ast.Constant), f"line {node.lineno}: start the module's name with its package."
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name


def violations(module: str, source: str) -> list[str]:
    here = package_of(module)
    found = []
    for name in imports(ast.parse(source)):
        there = package_of(name) if name.startswith("mambar.") else ""
        if not there or there not in LEVEL or not here or there == here:
            continue
        if LEVEL[there] <= LEVEL[here]:
            relation = "is in a higher layer than" if LEVEL[there] < LEVEL[here] else "is in the same layer as"
            found.append(
                f"{module} imports {name}: {there} {relation} {here}. Move the imported code down or the caller up."
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_packages_import_only_lower_layers(path):
    assert not violations(module_of(path), path.read_text("utf-8"))


def test_an_upward_import_is_found():
    assert violations("mambar.nn.heads", "from mambar.models.config import VARIANTS")
    assert violations("mambar.ops.dispatch", "import mambar.data.keys")
    assert violations("mambar.ops.dispatch", "def load():\n    from mambar.nn import heads")
    assert violations("mambar.ops.dispatch", "importlib.import_module('mambar.nn.heads')")
    assert violations("mambar.ops.dispatch", "importlib.import_module(f'mambar.nn.{name}')")
    assert violations("mambar.ops.dispatch", "Backend(name='triton', module='mambar.nn.heads')")
    assert not violations("mambar.models.config", "from mambar.nn.heads import HEADS")


def test_every_package_has_a_layer():
    packages = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert packages <= set(LEVEL), f"without a layer: {sorted(packages - set(LEVEL))}"


def graph_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module → the modules of `sources` that it imports, also in functions and by string."""
    graph = {}
    for module, source in sources.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        found: set[str] = set()
        for name in imports(tree):
            found |= set(fnmatch.filter(sources, name)) if "*" in name else {name} & set(sources)
        # `from package import module` also names the package; a package's __init__ re-exports names of its modules.
        graph[module] = {name for name in found if name != module and not module.startswith(f"{name}.")}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, empty if there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for imported in sorted(graph[module]):
                if found := visit(imported, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def test_no_cycles_between_files():
    sources = {module: path.read_text("utf-8") for module, path in MODULES.items() if module != "mambar"}
    assert not find_cycle(graph_of(sources)), " → ".join(find_cycle(graph_of(sources)))


@pytest.mark.parametrize(
    "statement", ["import mambar.nn.heads", "def f():\n    import mambar.nn.heads", "Backend(module='mambar.nn.heads')"]
)
def test_a_cycle_is_found(statement):
    sources = {"mambar.nn.block": statement, "mambar.nn.heads": "from mambar.nn.block import Block"}
    assert find_cycle(graph_of(sources))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_docstrings_and_names(path):
    tree = ast.parse(path.read_text("utf-8"))
    module = module_of(path)
    assert not set(module.split(".")) & BANNED_NAMES, f"{module}: name the module after its subject."
    assert ast.get_docstring(tree), f"{module} has no docstring."
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring."
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "__future__" not in names, f"{module}: `from __future__ import annotations` hides shapes from tests."
