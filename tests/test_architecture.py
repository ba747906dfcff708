"""Packages import only packages of lower layers, and no two modules import each other."""

import ast
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
    {"segmentation", "web"},
    {"training"},
    {"analysis", "bench"},
    {"evaluation"},
    {"hub", "export"},
    {"models"},
    {"nn"},
    {"ops", "data"},
    {"cache", "memory", "deprecated", "device", "user_module"},
    {"errors", "messages", "version"},
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}

FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
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
    assert not violations("mambar.models.config", "from mambar.nn.heads import HEADS")


def test_every_package_has_a_layer():
    packages = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert packages <= set(LEVEL), f"without a layer: {sorted(packages - set(LEVEL))}"


def _graph() -> dict[str, set[str]]:
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"))
        # Imports inside functions run later and cannot make a cycle at import time.
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
                # A package's __init__ re-exports names; a module below it may be imported through it.
                if not module.startswith(next_module + ".") or next_module == "mambar":
                    walk(next_module, [*path, module])
            done.add(module)

    for module in graph:
        if module != "mambar":
            walk(module, [])
