"""Modules, public classes and public functions have docstrings; no module has a name without a subject."""

import ast

import pytest

from test_architecture import FILES, module_of

BANNED_NAMES = {"utils", "util", "common", "helpers", "misc", "tools"}


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
