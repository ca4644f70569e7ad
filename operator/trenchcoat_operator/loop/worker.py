"""The loop: take a key, look, decide, act; again when due."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.resource import InvalidTrenchcoatError, Metadata, Trenchcoat, read_status
from trenchcoat_api.status import ConditionType, TrenchcoatStatus

from trenchcoat_operator.apply.applier import Applier, status_object
from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import ApiError, Cluster, NotFoundError
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.model.observed import Observed, Problem, StoreView
from trenchcoat_operator.model.plan import Plan
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.observe.observer import Observer
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.reconcile.telling.conditions import Verdict, merge, rejected
from trenchcoat_operator.reconcile.telling.events import of_conditions
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.s3 import StoreError

log = logging.getLogger(__name__)

_REJECTIONS = (400, 403, 422)
DUE_SECONDS = 0.1
"""Two that see GPUs free for each other do not wake each other without pause."""


class Reconciler:
    """Brings one Trenchcoat a step on."""

    def __init__(
        self, cluster: Cluster, settings: Settings, metrics: Metrics, wake: Callable[[Key, float], None]
    ) -> None:
        """`wake` is called with a Trenchcoat that should be looked at, and after how many seconds."""
        self._cluster = cluster
        self._settings = settings
        self._metrics = metrics
        stores = Stores(cluster, metrics.read)
        self._informers = Informers(cluster, settings, self._notice)
        self._observer = Observer(cluster, self._informers, settings, stores)
        self._versions = Versions()
        self._applier = Applier(cluster, stores, self._versions)
        self._sharing = threading.Lock()
        self._wake = wake
        self._waiting: dict[Key, None] = {}
        self._waiting_lock = threading.Lock()

    def all_keys(self) -> list[Key]:
        """All Trenchcoats that are served.

        Raises:
            ApiError: they could not be listed.
        """
        found = []
        for namespace in self._settings.namespaces or ("",):
            for body in self._cluster.list(client.TRENCHCOATS, namespace):
                metadata = body["metadata"]
                found.append(key := Key(metadata["namespace"], metadata["name"]))
                self.saw(key, metadata["resourceVersion"])
        return found

    def saw(self, key: Key, version: str) -> None:
        """A Trenchcoat is said to be at this resource version: no older one may be decided upon."""
        self._versions.note(key, version)

    def retain(self, keys: Collection[Key]) -> None:
        """Forget what is not among all keys any more."""
        self._versions.retain(keys)
        self._metrics.retain(keys)

    def step(self, key: Key) -> float | None:
        """Look, decide and act once; returns the seconds until the next look, if time alone asks for it.

        Raises:
            ApiError: the API server could not be read or written.
            StoreError: an artifact could not be deleted.
        """
        trenchcoat = self._read(key)
        if trenchcoat is None:
            self._remember(key, None)
            return None
        observed = self._observer.look(trenchcoat)
        plan = self._decide(trenchcoat, observed)
        try:
            if not plan.needs_surroundings:
                self._act(trenchcoat, plan)
            else:
                # One Trenchcoat at a time takes GPUs and begins with artifacts, so that none is taken twice.
                with self._sharing:
                    observed = self._observer.look_around(trenchcoat, observed)
                    plan = self._decide(trenchcoat, observed)
                    if self._observer.is_made(trenchcoat, observed, plan.actions):
                        observed = self._observer.look_around(trenchcoat, observed)
                        plan = self._decide(trenchcoat, observed)
                    self._act(trenchcoat, plan)
        except ApiError as error:
            if error.status in _REJECTIONS:
                self._tell_rejection(trenchcoat, plan, error)
            raise
        self._remember(key, plan)
        self._metrics.acted(plan.actions)
        if not trenchcoat.metadata.deletion_timestamp:
            self._applier.report(trenchcoat, plan)
            self._metrics.reported(trenchcoat, plan.status)
        return plan.look_again

    def start(self) -> None:
        """Follow the cluster from now on, not only from the first step."""
        self._informers.start()

    def stop(self) -> None:
        """End what goes on between steps; none may follow."""
        self._informers.stop()

    def _notice(self, owner: Place, gave_back: bool) -> None:
        """Wake a Trenchcoat whose children changed, and one that waits for GPUs if a pod gave some back."""
        self._wake(Key(*owner), 0.0)
        scout = self.scout() if gave_back else None
        if scout is not None:
            self._wake(scout, 0.0)

    def scout(self) -> Key | None:
        """One of the Trenchcoats that wait for GPUs, each in turn.

        Its look finds out for whom there are GPUs: one look serves all, however many wait.
        """
        with self._waiting_lock:
            key = next(iter(self._waiting), None)
            if key is not None:
                self._waiting[key] = self._waiting.pop(key)
            return key

    def _remember(self, key: Key, plan: Plan | None) -> None:
        with self._waiting_lock:
            if plan is None or not plan.waits_for_gpus:
                self._waiting.pop(key, None)
            else:
                self._waiting.setdefault(key, None)
        for name in plan.due if plan is not None else ():
            namespace, _, other = name.partition("/")
            self._wake(Key(namespace, other), DUE_SECONDS)

    def _act(self, trenchcoat: Trenchcoat, plan: Plan) -> None:
        if trenchcoat.metadata.deletion_timestamp:
            self._applier.tell(trenchcoat, plan)  # before the finalizer goes, and the Trenchcoat with it
        try:
            self._applier.act(trenchcoat, plan)
        except StoreError as error:
            if not trenchcoat.metadata.deletion_timestamp:
                raise
            # A store that refuses to delete must not keep the Trenchcoat for ever.
            problem = StoreView(Problem(error.reason, error.message))
            plan = reconcile(trenchcoat, Observed(store=problem), self._settings, datetime.now(UTC))
            if not plan.actions:
                raise
            self._applier.tell(trenchcoat, plan)
            self._applier.act(trenchcoat, plan)
        self._informers.see(trenchcoat.metadata.namespace, plan.actions)

    def _tell_rejection(self, trenchcoat: Trenchcoat, plan: Plan, error: ApiError) -> None:
        """What the plan asks for is not taken, and will not be the next time: a person must know."""
        now = datetime.now(UTC)
        problem = Problem("Rejected", f"the API server does not take what was to be made: {error.message}")
        status = rejected(trenchcoat.status, problem, now)
        told = of_conditions(trenchcoat.status.conditions, status.conditions, trenchcoat)
        self._applier.report(trenchcoat, replace(plan, status=status, events=tuple(told)))

    def _decide(self, trenchcoat: Trenchcoat, observed: Observed) -> Plan:
        return reconcile(trenchcoat, observed, self._settings, datetime.now(UTC))

    def _read(self, key: Key) -> Trenchcoat | None:
        trenchcoat = self._informers.trenchcoat((key.namespace, key.name))
        if trenchcoat is None or not self._versions.is_current(key, trenchcoat.metadata.resource_version):
            trenchcoat = self._read_live(key)
        if (
            trenchcoat is not None
            and trenchcoat.metadata.deletion_timestamp
            and constants.FINALIZER not in trenchcoat.metadata.finalizers
        ):
            return None  # its children go by their owner references
        return trenchcoat

    def _read_live(self, key: Key) -> Trenchcoat | None:
        try:
            body = self._cluster.get(client.TRENCHCOATS, key.namespace, key.name)
        except NotFoundError:
            self._metrics.forget(key)
            return None
        former = read_status(body.get("status") or {})
        try:
            return Trenchcoat.from_object({**body, "status": former})
        except InvalidTrenchcoatError as error:
            self._refuse(body, former, error)
            return None

    def _refuse(self, body: dict[str, Any], former: TrenchcoatStatus, error: InvalidTrenchcoatError) -> None:
        """Say so in the status of an object that the API server let through and this version cannot read."""
        log.warning("cannot be read: %s", error)
        metadata = Metadata.model_construct(
            name=body["metadata"]["name"],
            namespace=body["metadata"]["namespace"],
            uid=body["metadata"]["uid"],
            generation=body["metadata"].get("generation", 0),
            resource_version=body["metadata"].get("resourceVersion", ""),
            finalizers=body["metadata"].get("finalizers") or [],
        )
        if body["metadata"].get("deletionTimestamp"):
            if constants.FINALIZER in metadata.finalizers:  # nobody can tell what its artifacts are
                self._applier.set_finalizer(metadata, present=False)
            return
        verdict = Verdict("False", "InvalidSpec", str(error))
        wanted = {
            ConditionType.ACCEPTED: verdict,
            ConditionType.SUCCEEDED: verdict,
            ConditionType.RECONCILING: Verdict("False", "Stalled"),
            ConditionType.STALLED: Verdict("True", "InvalidSpec", str(error)),
        }
        status = former.model_copy(
            update={
                "observed_generation": metadata.generation,
                "conditions": merge(former.conditions, wanted, metadata.generation, datetime.now(UTC)),
            }
        )
        if status != former:
            self._applier.write_status(metadata, status_object(status))


class Worker:
    """Threads that work on keys, and one that adds all keys now and then, whatever events said."""

    def __init__(
        self, queue: WorkQueue, reconciler: Reconciler, settings: Settings, metrics: Metrics
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._reconciler = reconciler
        self._settings = settings
        self._stop = threading.Event()
        self._last_resync = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(settings.workers)
        ]
        for target in (self._resync, self._scout):
            self._threads.append(threading.Thread(target=target, name=target.__name__[1:], daemon=True))

    def start(self) -> None:
        """Start the threads."""
        self._reconciler.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Let what is being worked on end, and stop."""
        self._stop.set()
        self._queue.stop()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._reconciler.stop()

    def saw(self, key: Key, version: str) -> None:
        """An event told of a Trenchcoat at this resource version."""
        self._reconciler.saw(key, version)

    def fault(self) -> str:
        """What is wrong with the loop; empty when it is well."""
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if dead and not self._stop.is_set():
            return f"threads ended: {', '.join(dead)}"
        silent = time.monotonic() - self._last_resync
        if silent > 5 * self._settings.resync_seconds:
            return f"no Trenchcoats could be listed for {silent:.0f} s"
        return ""

    def _work(self) -> None:
        while (key := self._queue.get()) is not None:
            begun = time.monotonic()
            failure: Exception | None = None
            try:
                look_again = self._reconciler.step(key)
            except (ApiError, StoreError) as error:
                failure = error
                delay = self._queue.failed(key)
                log.warning("%s: %s; again in %.0f s", key, error, delay)
            except Exception as error:
                failure = error
                delay = self._queue.failed(key)
                log.exception("%s: could not be reconciled; again in %.0f s", key, delay)
            else:
                self._queue.done(key, look_again)
            self._metrics.passed(time.monotonic() - begun, failure)

    def _scout(self) -> None:
        """GPUs can come free without a pod of ours: have somebody look now and then."""
        while not self._stop.wait(self._settings.poll_seconds):
            key = self._reconciler.scout()
            if key is not None:
                self._queue.add(key)

    def _resync(self) -> None:
        while not self._stop.is_set():
            wait = self._settings.resync_seconds
            try:
                keys = self._reconciler.all_keys()
                self._reconciler.retain(keys)
                for key in keys:
                    self._queue.add(key)
            except ApiError as error:
                log.warning("Trenchcoats cannot be listed: %s", error)
                wait = min(wait, 5.0)
            else:
                self._last_resync = time.monotonic()
            self._stop.wait(wait)
