"""What is seen of Trenchcoats while they run, and what follows from what was played."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from playing import Api, Bar
from trenchcoat_api.stages import Stage

_PARTS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(duration: str) -> float:
    """Seconds of a time as a status has it, such as 4m10s."""
    return float(sum(int(count) * _PARTS[unit] for count, unit in re.findall(r"(\d+)([hms])", duration)))


@dataclass
class Told:
    """What one look at a status told of when what is at work will be done."""

    at: float
    stage: str
    progress: float
    left: float


@dataclass
class Seen:
    """What is seen of one Trenchcoat."""

    waited: Counter[str] = field(default_factory=Counter)
    """Seconds that rows have waited, by reason; those of several rows at once are added up."""
    told: list[Told] = field(default_factory=list)
    ended: float | None = None
    stalled: str = ""
    waiting: Counter[str] = field(default_factory=Counter)
    since: float = 0.0


class Watcher:
    """Watches all Trenchcoats."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self.seen: dict[str, Seen] = defaultdict(Seen)
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def _guarded(self) -> None:
        try:
            for event in self._api.watch("/apis/trenchcoat.dev/v1alpha1/trenchcoats", self._stop):
                if event["type"] != "DELETED":
                    body = event["object"]
                    note(self.seen[body["metadata"]["namespace"]], body.get("status") or {})
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            if not self._stop.is_set():
                self.fault = error


def note(seen: Seen, status: dict[str, Any]) -> None:
    """Note a status as it is now."""
    now = time.monotonic()
    for reason, count in seen.waiting.items():
        seen.waited[reason] += count * (now - seen.since)
    stages = [row for row in status.get("stages", []) if row["name"] != Stage.CRIA]
    rows = [*stages, *status.get("crias", [])]
    seen.waiting = Counter(row["waitingReason"] for row in rows if row.get("waitingReason"))
    seen.since = now
    for row in stages:
        if row.get("eta") and row["state"] == "Running":
            seen.told.append(Told(now, row["name"], _share(row), seconds_of(row["eta"])))
    crias = [row for row in status.get("stages", []) if row["name"] == Stage.CRIA]
    if crias and crias[0].get("eta"):
        seen.told.append(Told(now, "cria", _share(crias[0]), seconds_of(crias[0]["eta"])))
    if status.get("eta"):
        seen.told.append(Told(now, "run", _share(status), seconds_of(status["eta"])))
    held = {item["type"]: item for item in status.get("conditions", []) if item["status"] == "True"}
    seen.stalled = held["Stalled"]["message"] if "Stalled" in held else ""
    if "Succeeded" in held and seen.ended is None:
        seen.ended = now


def _share(row: dict[str, Any]) -> float:
    return float(row.get("progress", "0%").rstrip("%") or 0) / 100


def busy(bars: list[Bar], pool: str, span: tuple[float, float]) -> float:
    """GPU seconds in a pool within a span of time."""
    inside = (
        (min(bar.ended, span[1]) - max(bar.began, span[0])) * bar.gpus for bar in bars if bar.pool == pool
    )
    return sum(value for value in inside if value > 0)


def span_of(bars: list[Bar], prefix: str) -> tuple[float, float]:
    """From the first beginning to the last end of what is named so."""
    named = [bar for bar in bars if bar.name.startswith(prefix)]
    return min(bar.began for bar in named), max(bar.ended for bar in named)


def off(told: list[Told], stage: str, ended: float) -> float | None:
    """How far the first estimate after a tenth of a stage was off, in parts of what was left."""
    first = next((item for item in told if item.stage == stage and item.progress >= 0.1), None)
    if first is None or ended <= first.at:
        return None
    return abs(first.left - (ended - first.at)) / (ended - first.at)
