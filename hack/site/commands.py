"""Which commands of the documentation a test runs, by hack/site/commands.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """Commands that begin alike."""

    begins: str
    test: str = ""
    evidence: str = ""
    not_run: str = ""


@cache
def entries() -> list[Entry]:
    """All, in order."""
    listed = yaml.safe_load((REPO / "hack" / "site" / "commands.yaml").read_text())
    return [Entry(**{key.replace("-", "_"): value for key, value in item.items()}) for item in listed]


def commands(markdown: str) -> Iterator[str]:
    """What stands after `$` in blocks of a console."""
    for block in CONSOLE.findall(markdown):
        yield from re.findall(r"^\$ (.*)$", block, re.MULTILINE)


def entry(command: str) -> Entry | None:
    """The first that fits."""
    return next((item for item in entries() if command.startswith(item.begins)), None)


def marked(markdown: str) -> str:
    """The page with a line below each block that has commands which no test runs."""

    def mark(block: re.Match[str]) -> str:
        found = [(command, entry(command)) for command in commands(block.group(0))]
        words = [f"`{_short(command)}`: {item.not_run}" for command, item in found if item and item.not_run]
        return block.group(0) + (
            f"\n\n*Not run by a test: {'; '.join(dict.fromkeys(words))}.*" if words else ""
        )

    return CONSOLE.sub(mark, markdown)


def _short(command: str) -> str:
    words = command.split()
    return " ".join(words[:3])
