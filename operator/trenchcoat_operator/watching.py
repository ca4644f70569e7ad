"""Kopf, for as long as the cluster serves Trenchcoats; without their definition it is waited for.

Without the right to list and watch all definitions of the cluster, kopf looks once, at its start, for what it
is to watch: it would watch nothing for ever where the definition comes later, and it ends where that is taken
away.
"""

import asyncio
import logging
import signal
import threading
from typing import Any

import kopf

from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.loop.worker import Worker
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)

STOP_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 1.0
"""For so long a new definition must be served: of several API servers each hears of it by itself."""
_PULSE_SECONDS = 5.0
_NOT_FOUND = 404


class Watching:
    """Runs kopf again and again, and the worker from the first time on."""

    def __init__(
        self, cluster: Cluster, settings: Settings, registry: kopf.OperatorRegistry, worker: Worker
    ) -> None:
        self._cluster, self._settings, self._registry = cluster, settings, registry
        self._worker = worker
        self._stop = threading.Event()
        self._served = False
        self._loop: asyncio.AbstractEventLoop | None = None
        kopf.on.startup(registry=registry)(self._begun)

    def run(self) -> None:
        """Follow Trenchcoats until SIGTERM or SIGINT.

        Raises:
            Exception: whatever ends kopf, unless it is that Trenchcoats are not served any more.
        """
        working = False
        try:
            while self._wait_until_served():
                if working:
                    self._worker.served_again()
                else:
                    self._worker.start()
                    working = True
                self._served = True
                if self._follow():
                    return
        finally:
            if working:
                self._worker.stop(STOP_SECONDS)

    def live(self) -> str:
        """What a restart may mend; empty when nothing is to be mended by one."""
        if not self._served:
            return ""  # it waits: a restart would only be followed by a longer pause
        loop = self._loop
        if loop is not None and not loop.is_closed():
            pulse = threading.Event()
            try:
                loop.call_soon_threadsafe(pulse.set)
            except RuntimeError:
                return ""  # closed since
            if not pulse.wait(_PULSE_SECONDS):
                return f"kopf's event loop has not answered for {_PULSE_SECONDS:.0f} s"
        return self._worker.fault()

    def ready(self) -> str:
        """What keeps Trenchcoats from being worked on; empty when they are."""
        if not self._served:
            return (
                f"the API server serves no {kinds.TRENCHCOATS.plural} of {kinds.TRENCHCOATS.group_version}: "
                "install their CustomResourceDefinition (the chart's crds.enabled, or crds/)"
            )
        return self.live()

    async def _begun(self, **_: Any) -> None:
        self._loop = asyncio.get_running_loop()

    def _follow(self) -> bool:
        """Run kopf; returns whether the operator was told to end."""
        try:
            kopf.run(
                registry=self._registry,
                standalone=True,
                clusterwide=not self._settings.namespaces,
                namespaces=self._settings.namespaces,
            )
        except Exception as error:
            if getattr(error, "status", None) != _NOT_FOUND:
                raise
            log.warning("Trenchcoats are not served any more: %s", error)
            return False
        finally:
            self._loop, self._served = None, False
        return True

    def _wait_until_served(self) -> bool:
        """Wait for the definition; False when the operator is told to end meanwhile."""
        for number in (signal.SIGTERM, signal.SIGINT):  # kopf's own handlers are gone when it has ended
            signal.signal(number, lambda *_: self._stop.set())
        told, first = "", True
        while not self._stop.is_set():
            if self._is_served():
                if first or not self._stop.wait(_SETTLE_SECONDS):
                    return True
                break
            first = False
            if told != (told := self.ready()):
                log.warning("waits: %s", told)
            self._stop.wait(_LOOK_SECONDS)
        return False

    def _is_served(self) -> bool:
        try:
            return self._cluster.serves(kinds.TRENCHCOATS)
        except ApiError as error:
            log.warning("it cannot be found out whether Trenchcoats are served: %s", error)
            return False
