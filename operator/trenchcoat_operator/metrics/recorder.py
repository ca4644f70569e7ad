"""The metrics themselves: counted as things happen, shown when Prometheus asks."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.metrics import samples
from trenchcoat_operator.metrics.samples import Sample
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.model.plan import (
    Action,
    Apply,
    Delete,
    ForcePod,
    Keep,
    RecordOutcome,
    SetFinalizer,
    Stop,
)

_PASS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 30)
_STAGE_BUCKETS = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)

_GAUGES = {
    "trenchcoat_condition": ("1 while the condition is True, else 0.", ("condition",)),
    "trenchcoat_progress_ratio": ("Share of the whole run that is done.", ()),
    "trenchcoat_crias": ("Crias in each state.", ("state",)),
    "trenchcoat_cria_progress_ratio": ("Share of a running Cria that is done.", ("cria",)),
    "trenchcoat_cria_loss": ("Latest loss of a running Cria.", ("cria",)),
    "trenchcoat_reuse_ratio": ("Share of the complete artifacts that were reused.", ()),
    "trenchcoat_used_gpu_seconds": ("GPU seconds of all attempts so far.", ()),
    "trenchcoat_stored_bytes": ("Bytes of all complete artifacts.", ()),
}


class Metrics:
    """All metrics of one operator; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._shown: dict[Key, list[Sample]] = {}
        self._looked: dict[Key, float] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_OfTrenchcoats(self._snapshot))
        self._info = Gauge(
            "trenchcoat_build_info", "The operator's version.", ["version"], registry=self.registry
        )
        self._info.labels(metadata.version("trenchcoat")).set(1)
        known = Gauge("trenchcoat_trenchcoats", "Trenchcoats that are known.", registry=self.registry)
        known.set_function(lambda: len(self._shown))
        self._depth = Gauge(
            "trenchcoat_queue_depth",
            "Trenchcoats that are due and wait for a worker.",
            registry=self.registry,
        )
        self._pass = self._histogram(
            "trenchcoat_reconcile_duration_seconds", "Seconds of one pass.", (), _PASS_BUCKETS
        )
        self._errors = self._counter("trenchcoat_reconcile_errors_total", "Passes that failed.", ("cause",))
        self._requests = self._counter(
            "trenchcoat_api_requests_total", "Requests to the API server.", ("verb", "resource", "code")
        )
        self._answers = self._histogram(
            "trenchcoat_api_request_duration_seconds",
            "Seconds until the API server answered.",
            ("verb",),
            _REQUEST_BUCKETS,
        )
        self._reads = self._histogram(
            "trenchcoat_store_read_duration_seconds",
            "Seconds of one read in the store.",
            ("object",),
            _REQUEST_BUCKETS,
        )
        self._actions = self._counter(
            "trenchcoat_actions_total", "What was done to children.", ("action", "kind")
        )
        self._durations = self._histogram(
            "trenchcoat_stage_duration_seconds",
            "Seconds that a complete artifact took to compute.",
            ("stage",),
            _STAGE_BUCKETS,
        )
        self._by_namespace = {
            "trenchcoat_artifacts_total": self._counter(
                "trenchcoat_artifacts_total",
                "Artifacts that became complete.",
                ("namespace", "stage", "source"),
            ),
            "trenchcoat_failed_attempts_total": self._counter(
                "trenchcoat_failed_attempts_total", "Attempts that failed.", ("namespace", "stage", "reason")
            ),
            "trenchcoat_waiting_seconds_total": self._counter(
                "trenchcoat_waiting_seconds_total",
                "Seconds that stages and Crias waited.",
                ("namespace", "reason"),
            ),
            "trenchcoat_gpu_seconds_total": self._counter(
                "trenchcoat_gpu_seconds_total",
                "GPU seconds of attempts that are over.",
                ("namespace", "stage", "outcome"),
            ),
        }

    def _counter(self, name: str, help_: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, help_, labels, buckets=buckets, registry=self.registry)

    # What happens

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Show the depth of a queue."""
        self._depth.set_function(depth)

    def passed(self, seconds: float, error: Exception | None = None) -> None:
        """Count a pass, and how it failed."""
        self._pass.observe(seconds)
        if error is not None:
            self._errors.labels(_cause(error)).inc()

    def requested(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, resource, str(code)).inc()
        self._answers.labels(verb).observe(seconds)

    def read(self, what: str, seconds: float) -> None:
        """Count a read in the store."""
        self._reads.labels(what).observe(seconds)

    def acted(self, actions: Iterable[Action]) -> None:
        """Count actions; to be called once they are carried out."""
        for action in actions:
            self._actions.labels(*_told(action)).inc()

    def reported(self, trenchcoat: Trenchcoat, status: TrenchcoatStatus) -> None:
        """Count what a new status tells, and show it; to be called once it is written.

        Args:
            trenchcoat: With its former status.
            status: The new one.
        """
        key = Key(trenchcoat.metadata.namespace, trenchcoat.metadata.name)
        now = self._clock()
        shown = samples.gauges(trenchcoat, status)
        with self._lock:
            waited = now - self._looked.get(key, now)
            self._looked[key] = now
            self._shown[key] = shown
        self._count(samples.changes(trenchcoat, status, waited))

    def forget(self, key: Key) -> None:
        """Remove all series of a Trenchcoat that is gone, and its namespace's if it was the last there."""
        with self._lock:
            known = self._shown.pop(key, None) is not None
            self._looked.pop(key, None)
            last = known and all(other.namespace != key.namespace for other in self._shown)
        if last:
            for counter in self._by_namespace.values():
                counter.remove_by_labels({"namespace": key.namespace})

    def retain(self, keys: Iterable[Key]) -> None:
        """Forget all Trenchcoats but these: a deletion that no event told of."""
        with self._lock:
            gone = self._shown.keys() - set(keys)
        for key in gone:
            self.forget(key)

    def _count(self, counted: list[Sample]) -> None:
        for sample in counted:
            if sample.metric in self._by_namespace:
                self._by_namespace[sample.metric].labels(*sample.labels).inc(sample.value)
            else:
                self._durations.labels(*sample.labels).observe(sample.value)

    def _snapshot(self) -> list[Sample]:
        with self._lock:
            return [sample for shown in self._shown.values() for sample in shown]


class _OfTrenchcoats(Collector):
    """Gauges of each Trenchcoat, made when asked for: what is forgotten is gone."""

    def __init__(self, snapshot: Callable[[], list[Sample]]) -> None:
        self._of_all = snapshot

    def describe(self) -> Iterable[Metric]:
        """The families without values."""
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The families with the values of all Trenchcoats."""
        families = self._families()
        for sample in self._of_all():
            families[sample.metric].add_metric(sample.labels, sample.value)
        yield from families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(name, help_, labels=("namespace", "name", *labels))
            for name, (help_, labels) in _GAUGES.items()
        }


def _cause(error: Exception) -> str:
    if not isinstance(error, ApiError):
        return "internal"
    if error.status == 0:
        return "unreachable"
    return "server" if error.status >= 500 else "refused"


def _told(action: Action) -> tuple[str, str]:
    """Its name and the kind of object that it is done to."""
    match action:
        case Apply(manifest=manifest):
            kind = str(manifest["kind"])
        case Delete() | Stop() | Keep() | RecordOutcome():
            kind = str(action.kind)
        case ForcePod():
            kind = "Pod"
        case SetFinalizer():
            kind = constants.KIND
        case _:
            kind = "Artifact"
    return type(action).__name__, kind
