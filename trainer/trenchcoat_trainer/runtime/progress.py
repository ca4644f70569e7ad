"""Telling how a stage goes: to the store, to the log, and on a terminal as a bar."""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import rich.progress
from trenchcoat_api.artifacts import Artifact, Progress

from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.pace import Pace
from trenchcoat_trainer.store import Store

logger = logging.getLogger(__name__)

EVERY_SECONDS = 3.0
EVERY_SECONDS_VERSIONED = 60.0
"""Where every report stays: a day of the others would be 28,800 versions of one object."""
FIRST_SECONDS = 1.0
"""Between the first two reports. A later pause is as long as all before it, up to the above: a stage of a few
seconds, and one that may report once a minute, tell early how long they will take."""
RATE_SECONDS = 30.0
CURVE_POINTS = 32


class Curve:
    """At most 32 values, evenly spread over however many were added."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._stride = 1
        self._seen = 0

    def add(self, value: float) -> None:
        """Add the next value; it is kept if its turn has come."""
        if self._seen % self._stride == 0:
            if len(self.points) == CURVE_POINTS:
                self.points = self.points[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self.points.append(value)
        self._seen += 1

    def formatted(self) -> list[str]:
        """The values as the API wants them."""
        return [format_loss(value) for value in self.points]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as JSON."""
        return {"points": self.points, "stride": self._stride, "seen": self._seen}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "Curve":
        """Make the curve that `state` was taken from."""
        curve = cls()
        curve.points, curve._stride, curve._seen = list(state["points"]), state["stride"], state["seen"]
        return curve


def format_loss(value: float) -> str:
    """A loss with six digits, as a string."""
    return f"{value:.6g}"


class ProgressReporter:
    """Reports at most every few seconds, so that a stage may call `update` at every step."""

    def __init__(self, store: Store, artifact: Artifact, clock: Clock, *, silent: bool = False) -> None:
        """`silent` is for ranks other than the first, which report nothing."""
        self._store = store
        self._artifact = artifact
        self._clock = clock
        self._silent = silent
        self._reported: tuple[float, float] | None = None
        """When the first report was made, and the latest."""
        self._rates: deque[tuple[float, int]] = deque()
        self._tokens = 0
        self._phase = ""
        self._pace = Pace()
        self._fraction = 0.0
        self._saved_fraction: float | None = None
        self.curve = Curve()
        """The first loss named in each update of this phase."""
        self.listener: Callable[[Progress], None] | None = None
        """Told of each report."""
        self.forecast: Callable[[], float | None] | None = None
        """Seconds left, asked for at each report, where a stage can tell them better than its pace does."""
        self._bar = _Bar(artifact.name) if sys.stdout.isatty() and not silent else None

    def go_on(self, phase: str, curve: dict[str, Any]) -> None:
        """Go on with a phase whose curve so far an earlier attempt has saved."""
        self._phase, self.curve = phase, Curve.restore(curve)

    def saved(self) -> None:
        """Note that a checkpoint holds what was reported last: failures before it are forgiven."""
        self._saved_fraction = self._fraction

    def update(
        self,
        phase: str,
        step: int,
        steps: int,
        *,
        fraction: float,
        losses: Mapping[str, float] | None = None,
        tokens: int = 0,
    ) -> None:
        """Report that `step` of `steps` of a phase are done.

        Args:
            phase: What the stage does now, such as transfer.
            step: Steps done.
            steps: Steps of the phase; 0 while unknown.
            fraction: Share of the whole stage that is done, 0 to 1.
            losses: Latest losses by name; the first goes into the curve.
            tokens: Tokens processed since the last update.
        """
        if self._silent:
            return
        losses = losses or {}
        self._fraction = min(max(fraction, 0.0), 1.0)
        if phase != self._phase:
            self._phase = phase
            self.curve = Curve()
            self._rates.clear()
        if losses:
            self.curve.add(next(iter(losses.values())))
        self._tokens += tokens
        now = time.monotonic()
        self._pace.note(now, self._fraction)
        self._clock.paces.note(phase, self._fraction, now)
        is_last = 0 < steps <= step
        first, latest = self._reported or (now, -math.inf)
        pause = EVERY_SECONDS_VERSIONED if self._store.keeps_versions else EVERY_SECONDS
        if now - latest < min(pause, max(FIRST_SECONDS, latest - first)) and not is_last:
            return
        self._reported = first, now
        self._rates.append((now, self._tokens))
        while now - self._rates[0][0] > RATE_SECONDS and len(self._rates) > 2:
            self._rates.popleft()
        self._report(step, steps, {name: format_loss(value) for name, value in losses.items()})

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _report(self, step: int, steps: int, losses: dict[str, str]) -> None:
        progress = Progress(
            stage=self._artifact.stage,
            cria=self._artifact.cria.index if self._artifact.cria else None,
            key=self._artifact.key,
            phase=self._phase,
            step=step,
            steps=steps,
            fraction=self._fraction,
            losses=losses,
            curve=self.curve.formatted(),
            tokens_per_second=self._tokens_per_second(),
            eta_seconds=self.forecast() if self.forecast is not None else self._pace.left(),
            gpu_memory_bytes=_peak_gpu_memory(),
            saved_fraction=self._saved_fraction,
            updated_at=datetime.now(UTC),
        )
        self._store.write(self._artifact.progress_path, progress.model_dump_json(by_alias=True).encode())
        self._clock.save()
        if self.listener is not None:
            self.listener(progress)
        if self._bar is not None:
            self._bar.show(progress)
        else:
            logger.info("%s", describe(progress, self._artifact.name))

    def _tokens_per_second(self) -> float | None:
        (began, before), (now, after) = self._rates[0], self._rates[-1]
        return (after - before) / (now - began) if now > began and after > before else None


def _peak_gpu_memory() -> int | None:
    # A stage that has not loaded torch uses no GPU.
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else None


def describe(progress: Progress, name: str) -> str:
    """One line for a log."""
    steps = f" of {progress.steps}" if progress.steps else ""
    parts = [f"{name}: {progress.phase} {progress.step}{steps}, {progress.fraction:.0%}"]
    parts += [f"{loss} {value}" for loss, value in progress.losses.items()]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{progress.eta_seconds:.0f} s left")
    return ", ".join(parts)


class _Bar:
    def __init__(self, name: str) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[detail]}"),
        )
        self._name = name
        self._task = self._bar.add_task(name, total=1.0, detail="")
        self._bar.start()

    def show(self, progress: Progress) -> None:
        detail = describe(progress, self._name).removeprefix(f"{self._name}: ")
        self._bar.update(self._task, completed=progress.fraction, detail=detail)

    def stop(self) -> None:
        self._bar.stop()
