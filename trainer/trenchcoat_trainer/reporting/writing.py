"""Writing the report beside the artifacts: while the run goes on, and at its end."""

import importlib.util
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_report.run import Run

from trenchcoat_trainer.reporting.gathering import Gatherer
from trenchcoat_trainer.reporting.places import ReportPlace, former_runs, read_run
from trenchcoat_trainer.store import open_store

logger = logging.getLogger(__name__)

ENV_REPORT = "TRENCHCOAT_REPORT"
"""Set to never where a stage's program shall not write the run's report at its end."""
NEVER = "never"
EVERY_SECONDS = 30.0
SHARE = 0.02
"""Of a run's time that writing its report may take, at most."""
TRIES = 5
NEEDED = ("matplotlib", "jinja2")
MISSING = (
    "no report is written, for what draws it is not installed ({}): install Trenchcoat with the extra "
    "`report`, such as pip install 'trenchcoat[report]'"
)


def missing() -> str:
    """Why no report can be drawn here; empty where it can."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return MISSING.format(" and ".join(absent)) if absent else ""


@dataclass(kw_only=True)
class Reporter:
    """Keeps the report of one run."""

    gatherer: Gatherer
    _written_at: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    @property
    def page_file(self) -> Path | None:
        """The file of the page, where a folder stands for the store."""
        folder = self.gatherer.folder
        return folder / self.gatherer.trenchcoat.spec.store.bucket / self.place.page_path if folder else None

    @property
    def place(self) -> ReportPlace:
        """Where it stands."""
        return ReportPlace.of(self.gatherer.trenchcoat)

    def begin(self) -> None:
        """Note when the run began, unless that was noted before.

        Raises:
            StoreError: the store cannot be used.
            CorruptObjectError: a manifest cannot be read.
        """
        store = self.gatherer.store
        if read_run(store, self.place.run_path) is None:
            run = self.gatherer.gather(datetime.now(UTC))
            store.write(self.place.run_path, run.document().encode())

    def refresh(self) -> None:
        """Write it if its turn has come.

        Raises:
            StoreError: the store cannot be used.
            CorruptObjectError: a manifest cannot be read.
        """
        if time.monotonic() - self._written_at >= max(EVERY_SECONDS, self._took / SHARE):
            self.write()

    def write(self, *, failure: str = "") -> Run:
        """Write it as the run is now; `failure` is what ended it, if anything did.

        Stages that end at the same time all write it. Who writes last may have looked first: so each looks
        again afterwards, and writes anew where more is complete.

        Raises:
            StoreError: the store cannot be used.
            CorruptObjectError: a manifest cannot be read.
        """
        from trenchcoat_report.page import render  # late: it loads what draws

        began, store = time.monotonic(), self.gatherer.store
        for _ in range(TRIES):
            known = read_run(store, self.place.run_path)
            complete = self.gatherer.complete()
            run = self.gatherer.gather(known.began if known else None, failure=failure)
            page = render(run, former_runs(store, self.gatherer.trenchcoat))
            store.write(self.place.run_path, run.document().encode())
            store.write(self.place.page_path, page.encode())
            if self.gatherer.complete() == complete:
                break
        self._written_at = time.monotonic()
        self._took = self._written_at - began
        return run


def open_reporter(trenchcoat: Trenchcoat, file: Path, folder: Path | None) -> Reporter:
    """What keeps the report of a Trenchcoat's run.

    Raises:
        StoreError: the store cannot be used.
    """
    # Where it was written on a cluster is not known to a stage, and no report should guess it.
    metadata = trenchcoat.metadata.model_copy(update={"namespace": ""})
    return Reporter(
        gatherer=Gatherer(
            trenchcoat=trenchcoat.model_copy(update={"metadata": metadata}),
            store=open_store(trenchcoat.spec, folder),
            folder=folder,
            spec_file=str(file),
        )
    )
