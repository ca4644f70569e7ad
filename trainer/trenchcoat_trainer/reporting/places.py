"""Where reports stand in the store, and what is read of those that are there."""

import logging
from dataclasses import dataclass
from functools import cache

from pydantic import ValidationError
from trenchcoat_api.history import HISTORY, REPORTS, History, report_prefix
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_report.run import MAX_FORMER, Run

from trenchcoat_trainer.errors import NotFoundError
from trenchcoat_trainer.store import Store

logger = logging.getLogger(__name__)

PAGE = "report.html"
RUN = "run.json"
MOST_READ = 64
"""Documents of former runs that are read to find those to compare with."""


@dataclass(frozen=True, slots=True)
class ReportPlace:
    """The folder of one run's report: another spec that computes something else has another one."""

    prefix: str
    """Within the bucket, ending in a slash."""

    @classmethod
    def of(cls, trenchcoat: Trenchcoat) -> "ReportPlace":
        """That of a Trenchcoat."""
        return cls(report_prefix(trenchcoat.spec, trenchcoat.metadata.name))

    @property
    def page_path(self) -> str:
        """The report."""
        return self.prefix + PAGE

    @property
    def run_path(self) -> str:
        """The run that it was made of, as JSON, to compare later ones with."""
        return self.prefix + RUN

    @property
    def history_path(self) -> str:
        """What the operator knows of it, on a cluster."""
        return self.prefix + HISTORY


def read_run(store: Store, path: str) -> Run | None:
    """A run that was told of; none where there is none, or where another version wrote it in another form.

    Raises:
        StoreError: the store cannot be used.
    """
    try:
        return Run.model_validate_json(store.read(path))
    except NotFoundError:
        return None
    except ValidationError as error:
        _tell_unreadable(path, error.error_count())
        return None


def read_history(store: Store, path: str) -> History:
    """What the operator left; nothing where there was none, or it is another version's.

    Raises:
        StoreError: the store cannot be used.
    """
    try:
        return History.model_validate_json(store.read(path))
    except NotFoundError:
        return History()
    except ValidationError as error:
        _tell_unreadable(path, error.error_count())
        return History()


@cache
def _tell_unreadable(path: str, faults: int) -> None:
    """Once in a process: it is read again and again while a run goes on."""
    logger.warning("%s is left out, for another version wrote it: %d faults", path, faults)


def former_runs(store: Store, trenchcoat: Trenchcoat) -> list[Run]:
    """Other evaluated runs of the same model in this store, the latest first, at most four.

    Raises:
        StoreError: the store cannot be used.
    """
    own = ReportPlace.of(trenchcoat).run_path
    entries = store.list(f"{trenchcoat.spec.store.prefix}/{REPORTS}")
    paths = [entry.path for entry in entries if entry.path.endswith(f"/{RUN}") and entry.path != own]
    if len(paths) > MOST_READ:
        logger.info("comparing with the first %d of %d former runs alone", MOST_READ, len(paths))
    found = [run for path in paths[:MOST_READ] if (run := read_run(store, path)) is not None]
    source = trenchcoat.spec.model.source
    alike = [run for run in found if run.spec.model.source == source and run.trenchcoat.status.perplexities]
    return sorted(alike, key=lambda run: run.told_at, reverse=True)[:MAX_FORMER]
