"""How a local run shows itself: one bar a stage on a terminal, one line a change elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from trenchcoat_api import texts
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.artifacts import Progress as StageProgress


class Display:
    """Bars of the stages of one run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, artifacts: Sequence[Artifact]) -> None:
        """Add a bar for each artifact that has none yet."""
        for artifact in artifacts:
            if artifact.key not in self._tasks:
                self._tasks[artifact.key] = self._bars.add_task(
                    artifact.name, total=1.0, start=False, detail=""
                )

    def begin(self, artifact: Artifact) -> None:
        """Show that a stage started."""
        self._bars.start_task(self._tasks[artifact.key])
        self._say(f"{artifact.name}: started")

    def show(self, artifact: Artifact, progress: StageProgress) -> None:
        """Show how far a stage is."""
        steps = f"{progress.step}/{progress.steps}" if progress.steps else f"{progress.step}"
        losses = " ".join(f"{name} {value}" for name, value in progress.losses.items())
        left = "" if progress.eta_seconds is None else f"{texts.duration(progress.eta_seconds)} left"
        self._bars.update(
            self._tasks[artifact.key],
            completed=progress.fraction,
            detail=" ".join(part for part in (progress.phase, steps, left, losses) if part),
        )

    def end(self, artifact: Artifact, detail: str, *, complete: bool = True) -> None:
        """Show how a stage ended."""
        task = self._tasks[artifact.key]
        if complete:
            self._bars.start_task(task)
            self._bars.update(task, completed=1.0, detail=detail)
        else:
            self._bars.update(task, detail=f"[red]{detail}")
        self._bars.stop_task(task)
        self._say(f"{artifact.name}: {detail}")

    def warn(self, line: str) -> None:
        """Tell of what went wrong and does not end the run."""
        self._console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
