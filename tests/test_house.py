"""The house: imports point down, every room and name says what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "mambar"

# From the roof to the ground; rooms on one line do not know each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"paper"},
    {"recipes"},
    {"segmentation", "web"},
    {"training"},
    {"analysis", "bench"},
    {"evaluation"},
    {"hub", "export"},
    {"models"},
    {"nn"},
    {"ops", "data"},
    {"cache", "memory", "deprecated"},
    {"errors", "version"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
BANNED_NAMES = {"utils", "util", "common", "helpers", "misc", "tools"}

FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write it in full."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""


def violations(module: str, source: str) -> list[str]:
    here = room_of(module)
    found = []
    for name in imports(ast.parse(source)):
        there = room_of(name) if name.startswith("mambar.") else ""
        if not there or there not in LEVEL or not here or there == here:
            continue
        if LEVEL[there] <= LEVEL[here]:
            relation = "stands above" if LEVEL[there] < LEVEL[here] else "stands beside"
            found.append(
                f"{module} imports {name}: {there} {relation} {here}. Move the shared thing down, or the caller up."
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    assert not violations(module_of(path), path.read_text("utf-8"))


def test_an_upward_import_is_caught():
    assert violations("mambar.nn.heads", "from mambar.models.config import VARIANTS")
    assert violations("mambar.ops.dispatch", "import mambar.data.keys")
    assert not violations("mambar.models.config", "from mambar.nn.heads import HEADS")


def test_every_room_has_a_floor():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms <= set(LEVEL), f"without a floor: {sorted(rooms - set(LEVEL))}"


def _graph() -> dict[str, set[str]]:
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"))
        # Imports inside functions are made when they run, and cannot make a cycle at import time.
        top = ast.Module(body=[node for node in tree.body], type_ignores=[])
        for node in ast.walk(top):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [ast.Pass()]
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                node.body = [ast.Pass()]
        graph[module] = {name for name in imports(top) if name in modules and name != module}
    return graph


def test_no_cycles_between_files():
    graph = _graph()
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for next_module in graph[module]:
                # A package's own __init__ hands names on; a file below it may be imported through it.
                if not module.startswith(next_module + ".") or next_module == "mambar":
                    walk(next_module, [*path, module])
            done.add(module)

    for module in graph:
        if module != "mambar":
            walk(module, [])


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_docstrings_and_names(path):
    tree = ast.parse(path.read_text("utf-8"))
    module = module_of(path)
    assert not set(module.split(".")) & BANNED_NAMES, f"{module}: find the room this belongs to."
    assert ast.get_docstring(tree), f"{module} has no docstring."
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring."
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "__future__" not in names, f"{module}: `from __future__ import annotations` hides shapes from tests."
