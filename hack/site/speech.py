"""What the operator's code says, found in its syntax: reasons of conditions, and events."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OPERATOR = REPO / "operator" / "trenchcoat_operator"
API = REPO / "api" / "trenchcoat_api"

CAMEL = re.compile(r"(?:[A-Z][a-z]+)+")
CONDITION_STATUS = ("True", "False", "Unknown")
EVENT_TYPES = ("Normal", "Warning")
GIVES_REASONS = ("Verdict", "Problem", "_failed", "StoreError", "SecretError", "UnreadableError")
"""What is called with a reason in the operator's code."""
NAMED = re.compile(r'^(?:\w*REASON|GIVEN_UP|\w+_MISSING) = "(\w+)"', re.MULTILINE)
"""Reasons that have a name in the code."""
WAITS = "... waits for ... since ..., place ...: ...; ends ..."
"""The form of what trenchcoat_api.waiting says."""


def reasons() -> set[str]:
    """Words that the operator hands on as reasons, besides those of enumerations."""
    found = set()
    for file in _files():
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in GIVES_REASONS:
                given = [*call.args[:2], *(item.value for item in call.keywords if item.arg == "reason")]
                words = {word for item in given for word in spoken(item, {})}
                found |= {word for word in words.difference(CONDITION_STATUS) if CAMEL.fullmatch(word)}
        found.update(NAMED.findall(file.read_text()))
    return found


def events() -> set[tuple[str, str, str]]:
    """Type, reason and message of every event whose reason stands in the code as a word."""
    found = set()
    for file in _files():
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                found |= {row for parts in _told(function) for row in _rows(function, parts)}
    return found


def _told(function: ast.FunctionDef) -> Iterator[list[ast.expr]]:
    """The first three arguments of each event, or what stands for them until it is made of them."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Event":
            if len(node.args) >= 4:
                yield node.args[:3]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 3:
            first = node.elts[0]
            if isinstance(first, ast.Constant) and first.value in EVENT_TYPES:
                yield node.elts


def _rows(function: ast.FunctionDef, parts: list[ast.expr]) -> Iterator[tuple[str, str, str]]:
    kinds, reasons_, messages = (list(spoken(part, _values(function, parts[0].lineno))) for part in parts)
    for kind in kinds:
        for reason in reasons_:
            if CAMEL.fullmatch(reason):
                yield kind, reason, " / ".join(messages)


def _values(function: ast.FunctionDef, before: int) -> dict[str, ast.expr]:
    """What names were last given above a line of a function."""
    given = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.lineno < before
    ]
    return {
        node.targets[0].id: node.value
        for node in sorted(given, key=lambda node: node.lineno)
        if isinstance(node.targets[0], ast.Name)
    }


def spoken(node: ast.expr, values: dict[str, ast.expr]) -> Iterator[str]:
    """What an expression may say, with dots for what is known at run time alone.

    Args:
        node: The expression.
        values: Expressions of names in it.
    """
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from spoken(node.body, values)
        yield from spoken(node.orelse, values)
    elif isinstance(node, ast.JoinedStr):
        yield re.sub(r"\.\.\.( ?\.\.\.)+", "...", "".join(_piece(item, values) for item in node.values))
    elif isinstance(node, ast.Name) and node.id in values:
        yield from spoken(values[node.id], {})
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "waiting.together":
        yield WAITS
    else:
        yield "..."


def _piece(node: ast.expr, values: dict[str, ast.expr]) -> str:
    """A piece of an f-string: of a name that stands for words, those."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    words = list(spoken(inner, values))
    return words[0] if len(words) == 1 else f"({' | '.join(words)})" if all(words) else "..."


def _files() -> list[Path]:
    return [*sorted(API.rglob("*.py")), *sorted(OPERATOR.rglob("*.py"))]
