"""One look at the store of a Trenchcoat: what is complete, what is being made, and what was deleted."""

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta

from trenchcoat_api.artifacts import Artifact, Deletion, Manifest, Progress
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage

from trenchcoat_operator.model.observed import Child, ChildPhase, Problem, StoreView
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.cache import ABSENT_SECONDS
from trenchcoat_operator.storage.errors import StoreError
from trenchcoat_operator.storage.reader import StoreReader
from trenchcoat_operator.works import graph, superseded

_SILENCE = timedelta(seconds=30)
"""A stage that has reported nothing for so long may have ended, whatever its Job says."""
_CLOCKS = timedelta(seconds=2)
"""By so much the clocks of the control plane's machines may differ."""


class StoreLook:
    """Reads once; what was read before a fault stays."""

    def __init__(
        self,
        stores: Stores,
        trenchcoat: Trenchcoat,
        children: Iterable[Child],
        former: StoreView | None = None,
        there: Collection[str] = (),
    ) -> None:
        """Nothing is read yet.

        Args:
            stores: All stores.
            trenchcoat: Whose store it is.
            children: Its Jobs, seen before the store is read.
            former: What was seen a moment ago, of the same children: their progress is not read again.
            there: Content keys of what is known to be there now, though a moment ago it may not have been.
        """
        self._stores = stores
        self._trenchcoat = trenchcoat
        self._deleted = bool(trenchcoat.metadata.deletion_timestamp)
        children = tuple(children)
        self._tried = {child.key for child in children} | set(there)
        self._at_work = {
            child.key for child in children if child.owned and (child.active or child.terminating)
        }
        self._ended = {
            child.key: child.finished_at
            for child in children
            if child.owned and child.finished_at is not None and child.key not in self._at_work
        }
        # How far a try came that has just failed stands in its progress, until the next one begins.
        self._reporting = self._at_work | {
            child.key
            for child in children
            if child.owned and child.phase is ChildPhase.FAILED and not child.outcome
        }
        # Those have left all that they leave, whatever they reported last.
        self._done = {child.key for child in children if any(pod.ended_at is not None for pod in child.pods)}
        self._reports = former.progress if former is not None else {}
        self._manifests: dict[str, Manifest] = {}
        self._progress: dict[str, Progress] = {}
        self._deletions: dict[str, Deletion] = {}
        self._remains: set[str] = set()

    def read(self) -> StoreView:
        """Everything that a decision may rest on; its problem says what could not be read.

        Raises:
            ApiError: the API server could not be read for a Secret.
        """
        try:
            reader = self._stores.open(self._trenchcoat)
            if not self._deleted:
                self._stores.check_secrets(self._trenchcoat)
            built = self._read_wanted(reader)
            self._read_superseded(reader, built)
            if self._deleted:
                self._read_remains(reader, built)
        except StoreError as error:
            self._stores.forget_secrets(self._trenchcoat.metadata.namespace)
            return self._view(Problem(error.reason, error.message))
        return self._view()

    def _view(self, problem: Problem | None = None) -> StoreView:
        return StoreView(problem, self._manifests, self._progress, self._deletions, frozenset(self._remains))

    def _read_wanted(self, reader: StoreReader) -> graph.Graph:
        """Read what the spec asks for, inputs before what needs them: nothing is whose inputs never were.

        Returns the graph of all that was read.
        """
        asked: set[str] = set()
        while True:
            told = self._view().told
            built = graph.build(self._trenchcoat.spec, told)
            ready = [
                work
                for work in graph.possible(self._trenchcoat.spec, told)
                if work.key not in asked and all(item.key in told for item in _precede(work))
            ]
            if not ready:
                return built
            for work in ready:
                asked.add(work.key)
                self._read(reader, work.artifact, absent_for=self._absent_for(work))

    def _absent_for(self, work: graph.Work) -> float:
        """How many seconds ago an artifact may have been missed to be missing now; 0 to look anew.

        What no Job was made for is not asked for at every look, and neither is what a Job left on the way,
        or did not, once somebody has looked after its end.
        """
        maker = work.maker.key if work.maker is not None else ""
        if work.key in self._tried or maker in self._at_work:
            return 0.0
        ended = self._ended.get(maker)
        if ended is None:
            return ABSENT_SECONDS
        return max(0.0, (datetime.now(UTC) - ended - _CLOCKS).total_seconds())

    def _read(self, reader: StoreReader, artifact: Artifact, *, absent_for: float) -> None:
        """Read one artifact, unless it was missed a moment ago.

        Of what is being made the progress is read, and as long as that says that it goes on and no pod has
        ended nothing else.
        """
        if absent_for and self._stores.manifests.is_absent(reader, artifact, absent_for):
            return
        report = self._reports.get(artifact.key)
        if report is None and artifact.key in self._reporting:
            report = reader.progress(artifact)
        if report is not None:
            self._progress[artifact.key] = report
            if artifact.key in self._at_work and artifact.key not in self._done and _goes_on(report):
                return
        manifest = self._stores.manifest(reader, artifact)
        if manifest is not None:
            self._manifests[artifact.key] = manifest
            self._progress.pop(artifact.key, None)
        elif artifact.key not in self._at_work:
            deletion = reader.deletion(artifact)
            if deletion is not None:
                self._deletions[artifact.key] = deletion
            else:
                self._stores.manifests.put_absent(reader, artifact)

    def _read_superseded(self, reader: StoreReader, built: graph.Graph) -> None:
        """Read what may have to be deleted of former specs' artifacts."""
        for work in superseded.works(self._trenchcoat, built):
            if not self._deleted and work.stage not in graph.INTERMEDIATE:
                continue
            manifest = self._stores.manifest(reader, work.artifact)
            deletion = reader.deletion(work.artifact) if manifest is None else None
            if manifest is not None:
                self._manifests[work.key] = manifest
            if deletion is not None:
                self._deletions[work.key] = deletion

    def _read_remains(self, reader: StoreReader, built: graph.Graph) -> None:
        """See what there is any object of."""
        for work in (*built.works, *superseded.works(self._trenchcoat, built)):
            if reader.holds_any(work.artifact):
                self._remains.add(work.key)


def _precede(work: graph.Work) -> Iterator[Artifact]:
    """The inputs that were there before there could be anything of a work.

    Hidden states are none: a Cria may have been trained on the same by the other strategy of collection. A
    boundary between Crias comes before the artifact of the Cria that leaves it.
    """
    if work.maker is not None:
        return (item for item in work.inputs if item.key != work.maker.key)
    return (item for item in work.inputs if item.stage is not Stage.COLLECT)


def _goes_on(report: Progress) -> bool:
    return report.fraction < 1 and datetime.now(UTC) - report.updated_at < _SILENCE
