"""Where the minutes of a run went, out of the logs of its lanes."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from .lane import Running

STEP = re.compile(r"^(?P<what>\S.*?) \.\.\. (?P<seconds>\d+\.\d) s$", re.MULTILINE)
"""As hack/cluster tells of its steps."""
DURATION = re.compile(
    r"^(?P<seconds>\d+\.\d+)s (?P<phase>setup|call|teardown) +(?P<test>\S.*)$", re.MULTILINE
)
"""As pytest tells of its slowest tests."""
FAILED = re.compile(r"^(?:FAILED|ERROR) \S*\.py\b.*$", re.MULTILINE)
"""As pytest's summary tells of a test that failed, and why."""
LONG = 10.0
"""Seconds from which on a step is worth a line."""
MOST = 15
"""Lines of slowest tests for a lane."""
WIDEST = 300
"""Characters of why a test failed."""


def table(ran: Sequence[Running], began: float) -> list[str]:
    """Every lane, its longest steps and slowest tests, as lines of text."""
    now = time.monotonic()
    lines = [f"{'minutes':>8} {'from':>6} {'to':>6}"]
    for running in ran:
        ended = running.ended if running.ended is not None else now
        took, start, end = ended - running.began, running.began - began, ended - began
        lines.append(f"{minutes(took):>8} {minutes(start):>6} {minutes(end):>6}  {running.lane.name}")
        lines += [f"{minutes(seconds):>8} {'':>13}    {what}" for seconds, what in details(running.log)]
    lines.append(f"{minutes(now - began):>8} {'':>13}  in all")
    return lines


def details(log: Path) -> list[tuple[float, str]]:
    """Steps of a lane in their order, then its slowest tests, with their seconds."""
    text = log.read_text(errors="replace")
    steps = [(float(match["seconds"]), match["what"]) for match in STEP.finditer(text)]
    tests = [
        (float(match["seconds"]), f"{match['phase']} {match['test']}") for match in DURATION.finditer(text)
    ]
    slowest = sorted(tests, key=lambda entry: -entry[0])[:MOST]
    return [entry for entry in (*steps, *slowest) if entry[0] >= LONG]


def minutes(seconds: float) -> str:
    """Minutes with one digit behind the point."""
    return f"{seconds / 60:.1f}"


def last_lines(log: Path, most: int) -> list[str]:
    """The end of a log."""
    return log.read_text(errors="replace").splitlines()[-most:]


def failures(log: Path) -> list[str]:
    """A line for each test that failed, the first one first."""
    found = FAILED.findall(log.read_text(errors="replace"))
    return [line if len(line) <= WIDEST else f"{line[:WIDEST]} ..." for line in dict.fromkeys(found)]
