"""What others say in Events of objects that wait, such as an autoscaler of a pod."""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError, ForbiddenError
from trenchcoat_operator.kubernetes.kinds import Selection
from trenchcoat_operator.model import sayings
from trenchcoat_operator.observe.kept import Job

log = logging.getLogger(__name__)

_KEPT_SECONDS = 10.0
"""Events are not in the API server's cache: each question reads those of the whole namespace."""

_AT_ONCE = 16
"""Of so many objects of a namespace it is asked within that time: where hundreds wait, the first tell why."""
_FRESH = timedelta(minutes=2)

Object = dict[str, Any]


class Said:
    """Asks for the Events of an object now and then."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._clock = cluster, clock
        self._kept: dict[tuple[str, str, str], tuple[float, tuple[Object, ...]]] = {}
        self._forbidden = False

    def by_autoscalers(self, namespace: str, pod: str) -> str:
        """The last that an autoscaler said of a pod; empty if none did."""
        return sayings.by_autoscalers(self._events(namespace, "Pod", pod))

    def refusal(self, job: Job, now: datetime) -> str:
        """What keeps the controller of a Job or PyTorchJob from making its pods; empty if nothing does."""
        events = self._events(job.place[0], job.child.kind.value, job.child.name)
        return sayings.refusal(events, job.uid, now - _FRESH)

    def _events(self, namespace: str, kind: str, name: str) -> tuple[Object, ...]:
        now, asked = self._clock(), (namespace, kind, name)
        known = self._kept.get(asked)
        if known is not None and now - known[0] < _KEPT_SECONDS:
            return known[1]
        self._kept = {key: kept for key, kept in self._kept.items() if now - kept[0] < _KEPT_SECONDS}
        if sum(place == namespace for place, *_ in self._kept) >= _AT_ONCE:
            return ()
        fields = f"involvedObject.kind={kind},involvedObject.name={name}"
        try:
            found = tuple(self._cluster.list(Selection(kinds.EVENTS, namespace, fields=fields)))
        except ForbiddenError as error:
            if not self._forbidden:
                log.warning("the status does not say what events say of what waits: %s", error)
            self._forbidden, found = True, ()
        except ApiError as error:
            log.warning("events of %s %s/%s cannot be read: %s", kind, namespace, name, error)
            found = ()
        self._kept[asked] = now, found
        return found
