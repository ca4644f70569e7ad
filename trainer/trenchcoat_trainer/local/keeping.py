"""The report of a local run, kept while it goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.reporting.writing import Reporter, missing, open_reporter
from trenchcoat_trainer.store.credentials import redact

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class KeptReport:
    """The report; once it cannot be written, that is told, and the run goes on without."""

    reporter: Reporter | None
    warn: Callable[[str], None]
    file: Path | None = None
    """Where it stands, once it was written."""

    def begin(self) -> None:
        """Note when the run began."""
        if self.reporter is not None:
            self._try(self.reporter.begin)

    def refresh(self) -> None:
        """Write it if its turn has come."""
        if self.reporter is not None:
            self._try(self.reporter.refresh)

    def write(self, failure: str = "") -> None:
        """Write it; `failure` is what ended the run, if anything did."""
        reporter = self.reporter
        if reporter is not None and self._try(lambda: reporter.write(failure=failure)):
            self.file = reporter.page_file

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except (StageError, OSError) as error:
            self.warn(f"the report was not written: {redact(str(error))}")
        except Exception as error:
            # What draws it is at fault; no artifact depends on that.
            said = f"{type(error).__name__}: {redact(str(error))}"
            logger.exception("the report cannot be drawn")
            self.warn(f"the report was not written, for it cannot be drawn ({said}); the run goes on without")
        else:
            return True
        self.reporter = None
        return False


@contextmanager
def kept_report(
    trenchcoat: Trenchcoat, spec_file: Path, folder: Path, warn: Callable[[str], None]
) -> Iterator[KeptReport]:
    """Keep the report of what runs within, and write it at the end, with what ended it.

    Args:
        trenchcoat: What runs.
        spec_file: The file that it was read from.
        folder: The folder that stands for the store.
        warn: Tells of why there is no report.
    """
    why = missing()
    if why:
        warn(why)
    report = KeptReport(None if why else open_reporter(trenchcoat, spec_file, folder), warn)
    report.begin()
    try:
        yield report
    except Exception as error:
        report.write(redact(str(error)))
        raise
    report.write()
