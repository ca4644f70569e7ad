"""What a Trenchcoat's status told of the time left, by what `kubectl get --watch` printed of it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

_PART = re.compile(r"(\d+)(d|h|m|s)")
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass
class Row:
    """What was told of one row of the status, in seconds of the clock."""

    name: str
    began: float = 0.0
    """When it was first seen at work."""
    ended: float = 0.0
    """When it was first seen to have succeeded."""
    told: list[tuple[float, float, float]] = field(default_factory=list)
    """Each as (when, share done, seconds left)."""


def read(file: Path) -> list[Row]:
    """The rows of the status, by the objects in a file: the first is when it was applied."""
    rows: dict[str, Row] = {}
    for body in documents(file.read_text()):
        at = written(body)
        for told in body.get("status", {}).get("stages", []):
            row = rows.setdefault(told["name"], Row(told["name"]))
            if told["state"] in ("Starting", "Running", "Waiting") and not row.began:
                row.began = at
            if told["state"] == "Succeeded" and not row.ended:
                row.ended = at
            if told.get("eta"):
                share = float(told.get("progress", "0%").rstrip("%") or 0) / 100
                row.told.append((at, share, seconds(told["eta"])))
    return list(rows.values())


def documents(text: str) -> Iterator[dict[str, Any]]:
    """Objects in JSON, one behind another."""
    decoder, at = json.JSONDecoder(), 0
    while (at := _next(text, at)) < len(text):
        try:
            body, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return  # the watch was ended within it
        yield body


def _next(text: str, at: int) -> int:
    found = text.find("{", at)
    return len(text) if found < 0 else found


def written(body: dict[str, Any]) -> float:
    """When the status was last written, in seconds of the clock; 0 where it was never."""
    times = [
        datetime.fromisoformat(item["time"]).timestamp()
        for item in body["metadata"].get("managedFields", [])
        if item.get("subresource") == "status"
    ]
    return max(times, default=0.0)


def seconds(text: str) -> float:
    """A duration such as 4m10s."""
    return float(sum(int(count) * _SECONDS[unit] for count, unit in _PART.findall(text)))
