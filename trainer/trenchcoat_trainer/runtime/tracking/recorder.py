"""Telling trackers in a thread of its own: a tracker that is slow or gone holds up no step."""

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trenchcoat_api.artifacts import Artifact, Facts, Progress
from trenchcoat_api.history import run_id
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.tracking.point import Point, Tracker, Work, of_facts, of_progress
from trenchcoat_trainer.store import Store
from trenchcoat_trainer.store.credentials import redact

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
PAUSE_SECONDS = 60.0
"""So long a tracker that failed is left alone."""
CLOSE_SECONDS = 30.0
"""So long a stage waits at its end for trackers to take the rest."""
MOST_WAITING = 2000
"""Points that wait for trackers, at most; later ones are dropped while none are taken."""
TENSORBOARD = "tensorboard/"


@dataclass(frozen=True, slots=True)
class _End:
    complete: bool


class Recorder:
    """Hands points on to trackers; no failure of theirs reaches the stage, each is told in the log."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = {tracker.name: tracker for tracker in trackers}
        self._points: queue.Queue[Point | _End] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._not_before: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def tell(self, progress: Progress) -> None:
        """Pass a report on."""
        self._put(of_progress(progress))

    def close(self, facts: Facts | None) -> None:
        """Pass the rest on, and wait a while for it to be taken.

        Args:
            facts: What stands in the manifest, if the artifact is complete.
        """
        final = of_facts(facts, time.time()) if facts is not None else None
        if final is not None:
            self._put(final)
        try:
            self._points.put(_End(facts is not None), timeout=CLOSE_SECONDS)
        except queue.Full:
            logger.warning("trackers take nothing: %d points are not told", self._points.qsize())
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("trackers have not taken the rest within %.0f s: it is not told", CLOSE_SECONDS)

    def _put(self, point: Point) -> None:
        try:
            self._points.put_nowait(point)
        except queue.Full:
            if not self._dropped:
                logger.warning("trackers take nothing: points are dropped")
            self._dropped += 1

    def _run(self) -> None:
        flushed = time.monotonic()
        while True:
            try:
                item: Point | _End | None = self._points.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                item = None
            for name, tracker in self._trackers.items():
                if item is not None:
                    self._try(name, tracker, item)
            if isinstance(item, _End):
                return
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                flushed = time.monotonic()
                for name, tracker in self._trackers.items():
                    self._try(name, tracker, None)

    def _try(self, name: str, tracker: Tracker, item: Point | _End | None) -> None:
        """Record a point, flush, or close; a tracker that failed is asked to flush no more for a while."""
        now = time.monotonic()
        if item is None and now < self._not_before.get(name, 0.0):
            return
        try:
            if isinstance(item, Point):
                tracker.record(item)
            elif isinstance(item, _End):
                tracker.close(complete=item.complete)
            else:
                tracker.flush()
        except Exception as error:  # noqa: BLE001  (whatever a client makes of its server; the artifact counts)
            self._not_before[name] = now + PAUSE_SECONDS
            told = redact(f"{type(error).__name__}: {error}")
            logger.warning("%s was not told: %s", name, told)


def missing(trenchcoat: Trenchcoat) -> list[str]:
    """Clients that the spec's trackers need and that are not installed here."""
    tracking = trenchcoat.spec.tracking
    if tracking is None:
        return []
    wanted = {
        "tensorboardX": tracking.tensor_board,
        "mlflow": tracking.ml_flow is not None,
        "trackio": tracking.trackio is not None,
    }
    return [name for name, is_named in wanted.items() if is_named and importlib.util.find_spec(name) is None]


def open_recorder(trenchcoat: Trenchcoat, store: Store, artifact: Artifact) -> Recorder | None:
    """What tells the trackers of a spec; None where it names none.

    Raises:
        BadInputError: a client is not installed.
    """
    spec = trenchcoat.spec
    if spec.tracking is None:
        return None
    if absent := missing(trenchcoat):
        raise BadInputError(
            f"spec.tracking needs {' and '.join(absent)}, which this image lacks: set the pods' image to one "
            "made by trainer/tracking.Dockerfile, on a machine install Trenchcoat with the extra `tracking`, "
            "or remove spec.tracking"
        )
    # Only now, for most stages run without them.
    trackers: list[Tracker] = []
    work = Work(
        trenchcoat=trenchcoat.metadata.name,
        run=run_id(spec),
        artifact=artifact.name,
        stage=artifact.stage.value,
        key=artifact.key,
    )
    if spec.tracking.tensor_board:
        from trenchcoat_trainer.runtime.tracking.tensorboard import TensorBoard

        trackers.append(TensorBoard(store, f"{spec.store.prefix}/{TENSORBOARD}", work))
    if spec.tracking.ml_flow is not None:
        from trenchcoat_trainer.runtime.tracking.mlflow_server import MLflow

        trackers.append(MLflow(spec.tracking.ml_flow, work))
    if spec.tracking.trackio is not None:
        from trenchcoat_trainer.runtime.tracking.trackio_server import Trackio

        trackers.append(Trackio(spec.tracking.trackio, work))
    return Recorder(trackers)
