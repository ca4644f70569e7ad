"""Benchmarks run by hand, so that nothing else notices when what they import has moved."""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@cache
def imported() -> list[tuple[str, str, str]]:
    """File, module and name of everything of the product that benchmarks import, wherever in a file."""
    found = []
    for file in sorted((TOP / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trenchcoat_"):
                names = [alias.name for alias in node.names]
                found += [(file.relative_to(TOP).as_posix(), node.module, name) for name in names]
    return found


def is_there(module: str, name: str) -> bool:
    """Whether `from module import name` finds something."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("trenchcoat_"):
            raise
        return False
    return True


@pytest.mark.parametrize("file", sorted({file for file, _, _ in imported()}))
def test_what_a_benchmark_imports_is_there(file: str) -> None:
    wanted = [(module, name) for where, module, name in imported() if where == file]
    assert [pair for pair in wanted if not is_there(*pair)] == []


def test_what_has_moved_is_found() -> None:
    assert not is_there("trenchcoat_api.stages", "Nothing")
    assert not is_there("trenchcoat_api.nowhere", "Stage")
    assert is_there("trenchcoat_api", "stages")
