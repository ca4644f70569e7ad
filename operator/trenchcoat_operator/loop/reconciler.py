"""One pass: look, decide, act."""

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.apply.applier import Applier
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.loop.refusals import Refusals
from trenchcoat_operator.loop.trenchcoats import GoneError, Trenchcoats
from trenchcoat_operator.loop.waiting import Waiting
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.model.observed import Observed, Problem, StoreView
from trenchcoat_operator.model.plan import Plan
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.observe.observer import Observer
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.reconcile.telling.events import of_conditions
from trenchcoat_operator.reconcile.telling.refusals import rejected
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.errors import StoreError

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
        self._settings = settings
        self._metrics = metrics
        stores = Stores(cluster, metrics.read)
        self._informers = Informers(cluster, settings, self._notice)
        self._observer = Observer(cluster, self._informers, settings, stores)
        self._versions = Versions()
        self._applier = Applier(cluster, stores, self._versions)
        self._trenchcoats = Trenchcoats(cluster, self._informers, self._versions, self._applier)
        self._sharing = threading.Lock()
        self._wake = wake
        self._waiting = Waiting()
        self._refusals = Refusals()

    def all_keys(self) -> list[Key]:
        """All Trenchcoats that are served.

        Raises:
            ApiError: they could not be listed.
        """
        return self._trenchcoats.all_keys(self._settings.namespaces)

    def saw(self, key: Key, version: str) -> None:
        """A Trenchcoat is said to be at this resource version: no older one may be decided upon."""
        self._versions.note(key, version)

    def retain(self, keys: Collection[Key]) -> None:
        """Forget what is not among all keys any more."""
        self._versions.retain(keys)
        self._metrics.retain(keys)
        self._refusals.retain(keys)

    def step(self, key: Key) -> float | None:
        """Look, decide and act once; returns the seconds until the next look, if time alone asks for it.

        Raises:
            ApiError: the API server could not be read or written.
            StoreError: an artifact of a Trenchcoat that is being deleted could not be.
        """
        try:
            trenchcoat = self._trenchcoats.read(key)
        except GoneError:
            self._metrics.forget(key)
            trenchcoat = None
        if trenchcoat is None:
            self._waiting.note(key, waits=False)
            return None
        plan = self._pass(trenchcoat)
        self._waiting.note(key, waits=plan.waits_for_gpus)
        for name in plan.due:
            namespace, _, other = name.partition("/")
            self._wake(Key(namespace, other), DUE_SECONDS)
        self._metrics.acted(plan.actions)
        if not trenchcoat.metadata.deletion_timestamp:
            self._applier.report(trenchcoat, plan)
            self._metrics.reported(trenchcoat, plan.status)
        return plan.look_again

    def start(self) -> None:
        """Follow the cluster from now on, not only from the first step."""
        self._informers.start()

    def served_again(self) -> None:
        """Trenchcoats are served again: look at once, not when a pause is over."""
        self._informers.hurry()

    def stop(self) -> None:
        """End what goes on between steps; none may follow."""
        self._informers.stop()

    def scout(self) -> Key | None:
        """One of the Trenchcoats that wait for GPUs, each in turn: its look serves all."""
        return self._waiting.scout()

    def _notice(self, owner: Place, gave_back: bool) -> None:
        """Wake a Trenchcoat whose children changed, and one that waits for GPUs if a pod gave some back."""
        self._wake(Key(*owner), 0.0)
        scout = self.scout() if gave_back else None
        if scout is not None:
            self._wake(scout, 0.0)

    def _pass(self, trenchcoat: Trenchcoat) -> Plan:
        """Look, decide, and do what the plan says; returns the plan, of which nothing is told yet."""
        key = Key(trenchcoat.metadata.namespace, trenchcoat.metadata.name)
        observed = replace(self._observer.look(trenchcoat), undeleted=self._refusals.fresh(key))
        plan = self._decide(trenchcoat, observed)
        try:
            if not plan.needs_surroundings:
                return self._act(trenchcoat, observed, plan)
            # One Trenchcoat at a time takes GPUs and begins with artifacts, so that none is taken twice.
            with self._sharing:
                observed = self._observer.look_around(trenchcoat, observed)
                plan = self._decide(trenchcoat, observed)
                there: frozenset[str] = frozenset()
                while (made := self._observer.made(trenchcoat, observed, plan.actions)) - there:
                    there |= made  # what is there can let others begin, which may be there as well
                    observed = self._observer.look_around(trenchcoat, observed, there)
                    plan = self._decide(trenchcoat, observed)
                return self._act(trenchcoat, observed, plan)
        except ApiError as error:
            if error.status in _REJECTIONS:
                self._tell_rejection(trenchcoat, plan, error)
            raise

    def _decide(self, trenchcoat: Trenchcoat, observed: Observed) -> Plan:
        return reconcile(trenchcoat, observed, self._settings, datetime.now(UTC))

    def _act(self, trenchcoat: Trenchcoat, observed: Observed, plan: Plan) -> Plan:
        """Do what the plan says; returns what is to be told, which is more where the store refuses."""
        deleted = bool(trenchcoat.metadata.deletion_timestamp)
        if deleted:
            self._applier.tell(trenchcoat, plan)  # before the finalizer goes, and the Trenchcoat with it
        try:
            self._applier.act(trenchcoat, plan)
        except StoreError as error:
            problem = Problem(error.reason, error.message)
            if not deleted:
                plan = self._tidied_later(trenchcoat, observed, plan, problem)
            else:
                # A store that refuses to delete must not keep the Trenchcoat for ever.
                plan = self._decide(trenchcoat, Observed(store=StoreView(problem)))
                if not plan.actions:
                    raise
                self._applier.tell(trenchcoat, plan)
                self._applier.act(trenchcoat, plan)
        self._informers.see(trenchcoat.metadata.namespace, plan.actions)
        return plan

    def _tidied_later(self, trenchcoat: Trenchcoat, observed: Observed, plan: Plan, problem: Problem) -> Plan:
        """What is told where the store let nothing be deleted: the run goes on, it is asked again later."""
        key = Key(trenchcoat.metadata.namespace, trenchcoat.metadata.name)
        log.warning("%s: %s", key, problem.message)
        self._refusals.note(key, problem)
        told = self._decide(trenchcoat, replace(observed, undeleted=problem))
        return replace(told, actions=plan.actions, due=plan.due)

    def _tell_rejection(self, trenchcoat: Trenchcoat, plan: Plan, error: ApiError) -> None:
        """What the plan asks for is not taken, and will not be the next time: a person must know."""
        problem = Problem("Rejected", f"the API server does not take what was to be made: {error.message}")
        status = rejected(trenchcoat.status, problem, datetime.now(UTC))
        told = of_conditions(trenchcoat.status.conditions, status.conditions, trenchcoat)
        self._applier.report(trenchcoat, replace(plan, status=status, events=tuple(told)))
