"""Who waited, ran, was interrupted or was taken over, over time."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import Source, State, Work
from trenchcoat_api.texts import duration

from trenchcoat_report.run import Run
from trenchcoat_report.theme import BROKEN, FAINT, INK, RAN, REUSED, WAITED, drawing, inline

LONGEST_WAIT = 0.25
"""Of the time that is drawn before the first start, in parts of the rest: a spec may lie for days."""

_DAY = 86400
_TICKS = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    _DAY,
    2 * _DAY,
    7 * _DAY,
)


@dataclass(frozen=True, slots=True)
class Span:
    """One work over time."""

    name: str
    row: Work
    ready: datetime | None
    """When its inputs were complete; none while they are not."""
    started: datetime | None
    ended: datetime | None
    """When it was complete; none where it is not."""

    @property
    def is_reused(self) -> bool:
        """Whether another run, or an earlier one, has made it."""
        return self.row.source is Source.REUSED

    def waited(self, now: datetime) -> float:
        """Seconds between its inputs' completion and its first start; 0 where it did not."""
        if self.is_reused or self.ready is None:
            return 0.0
        if self.started is None and self.row.state is State.SUCCEEDED:
            return 0.0
        return max(0.0, ((self.started or now) - self.ready).total_seconds())

    def ran(self, now: datetime) -> float:
        """Seconds from its first start to its end, or to now."""
        if self.is_reused or self.started is None:
            return 0.0
        return max(0.0, ((self.ended or now) - self.started).total_seconds())

    def interrupted(self, now: datetime) -> float:
        """Seconds between first start and end in which nothing was computed; 0 where it is too little."""
        if not self.row.seconds or self.ended is None:
            return 0.0
        lost = self.ran(now) - float(self.row.seconds)
        return lost if lost > max(5.0, 0.05 * self.ran(now)) else 0.0

    def note(self, now: datetime) -> str:
        """Beside its bar."""
        if self.is_reused:
            return "reused"
        parts = [duration(self.ran(now))] if self.started else []
        if self.row.attempt > 1:
            parts.append(f"try {self.row.attempt}")
        if lost := self.interrupted(now):
            parts.append(f"{duration(lost)} of it interrupted")
        if self.row.state is not State.SUCCEEDED:
            reason = f" ({self.row.waiting_reason.value})" if self.row.waiting_reason else ""
            parts.append(self.row.state.value.lower() + reason)
        return ", ".join(parts)


def spans(run: Run) -> list[Span]:
    """Of all stages and Crias, in order."""
    return [_span(run, name, stage, row) for name, stage, row in run.works()]


def draw(run: Run) -> str:
    """The bars; empty before anything ran."""
    found, now = spans(run), run.told_at
    starts = [span.started for span in found if span.started and not span.is_reused]
    if not starts:
        return ""
    ends = [span.ended or now for span in found if span.started and not span.is_reused]
    first = min(starts)
    if not run.is_complete:
        ends.append(now)  # until which others wait
    last = max(*ends, *starts, first + timedelta(seconds=1))  # clocks of nodes differ
    zero = max(run.began, first - LONGEST_WAIT * (last - first))
    zero = min(zero, first)
    with drawing():
        figure = Figure(figsize=(8.2, max(2.2, 1.0 + 0.27 * len(found))), layout="constrained")
        axes = figure.add_subplot()
        span_seconds = (last - zero).total_seconds()
        for place, span in enumerate(found):
            end = 0.0
            if waited := span.waited(now):
                begin = max(0.0, ((span.ready or zero) - zero).total_seconds())
                end = ((span.started or now) - zero).total_seconds()
                if waited > 0.002 * span_seconds:
                    axes.barh(place, end - begin, left=begin, height=0.62, color=WAITED, edgecolor=INK,
                              linewidth=0.4, hatch="////")  # fmt: skip
            if ran := span.ran(now):
                begin = ((span.started or zero) - zero).total_seconds()
                color = BROKEN if span.row.state is State.FAILED else RAN
                axes.barh(place, ran, left=begin, height=0.62, color=color, edgecolor=INK, linewidth=0.4,
                          hatch="xx" if span.interrupted(now) or span.row.attempt > 1 else "")  # fmt: skip
                end = begin + ran
            if span.is_reused:
                axes.plot([0], [place], marker="D", color=REUSED, markersize=6, clip_on=False)
                end = 0.008 * span_seconds
            axes.text(end + 0.008 * span_seconds, place, span.note(now), va="center", fontsize=8)
        axes.set_yticks(range(len(found)), [span.name for span in found], fontsize=9)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, 1.22 * span_seconds)
        axes.xaxis.set_major_locator(MultipleLocator(tick(1.22 * span_seconds)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.grid(visible=False, axis="y")
        legend = [
            Patch(facecolor=WAITED, edgecolor=INK, hatch="////", label="inputs there, waiting"),
            Patch(facecolor=RAN, edgecolor=INK, label="ran"),
            Patch(facecolor=RAN, edgecolor=INK, hatch="xx", label="ran, interrupted or tried again"),
            Patch(facecolor=BROKEN, edgecolor=INK, label="failed"),
            Patch(facecolor=REUSED, edgecolor=FAINT, label="reused"),
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=5, fontsize=8)
        return inline(figure, "gantt", "What ran when", describe(found, now))


def tick(seconds: float) -> float:
    """Seconds between two marks of an axis of so many seconds: at most eight marks, at whole units."""
    return next((step for step in _TICKS if seconds / step <= 8), seconds / 8)


def describe(found: list[Span], now: datetime) -> str:
    """The longest of each kind, in words."""
    ran = max(found, key=lambda span: span.ran(now))
    waited = max(found, key=lambda span: span.waited(now))
    reused = [span.name for span in found if span.is_reused]
    told = f"{ran.name} ran longest, {duration(ran.ran(now))}."
    if waited.waited(now) >= 1:
        told += f" {waited.name} waited longest, {duration(waited.waited(now))}."
    return told + (f" Reused: {', '.join(reused)}." if reused else "")


def _span(run: Run, name: str, stage: Stage, row: Work) -> Span:
    return Span(name, row, run.ready_at(stage), _moment(row.started_at), _moment(row.completed_at))


def _moment(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
