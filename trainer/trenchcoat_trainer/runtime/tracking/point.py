"""What a tracker is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from trenchcoat_api.artifacts import Facts, Progress


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage's program makes, for people."""

    trenchcoat: str
    """Name of the Trenchcoat."""
    run: str
    """The same for all stages of a run: the id of its report."""
    artifact: str
    """Such as stitch or cria-03."""
    stage: str
    key: str
    """Content key: another attempt at the same work has the same."""


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers by name at one step."""

    step: int
    seconds: float
    """Since the epoch."""
    values: Mapping[str, float]


class Tracker(Protocol):
    """Somewhere that losses are told to. Every method may raise whatever its client does."""

    name: str

    def record(self, point: Point) -> None:
        """Tell it a point."""

    def flush(self) -> None:
        """Have it keep what it was told so far."""

    def close(self, *, complete: bool) -> None:
        """Tell it nothing any more; whether the artifact is complete."""


def of_progress(progress: Progress) -> Point:
    """Losses by phase at their step, and how fast and how far it is."""
    values = {f"{progress.phase}/{name}": float(value) for name, value in progress.losses.items()}
    values[f"{progress.phase}/fraction"] = progress.fraction
    if progress.tokens_per_second is not None:
        values[f"{progress.phase}/tokens_per_second"] = progress.tokens_per_second
    if progress.gpu_memory_bytes is not None:
        values[f"{progress.phase}/gpu_memory_bytes"] = float(progress.gpu_memory_bytes)
    return Point(progress.step, progress.updated_at.timestamp(), values)


def of_facts(facts: Facts, seconds: float) -> Point | None:
    """What stands in a manifest: final losses and perplexities; none where it has neither."""
    values = {f"final/{name}": float(value) for name, value in facts.losses.items()}
    values |= {f"perplexity/{item.name}": float(item.perplexity) for item in facts.perplexities}
    return Point(0, seconds, values) if values else None
