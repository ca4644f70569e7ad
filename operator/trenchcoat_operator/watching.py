"""Kopf, for as long as the cluster serves Trenchcoats; without their definition it is waited for.

Without the right to list and watch all definitions of the cluster, kopf looks once, at its start, for what it
is to watch: it would watch nothing for ever where the definition comes later, and it ends where that is taken
away.
"""

import asyncio
import logging
import signal
import threading
import time
from types import FrameType

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
_STEP_SECONDS = 0.1
"""Between two looks whether a signal was noted."""
_NOT_FOUND = 404


class Watching:
    """Runs kopf again and again, and the worker from the first time on."""

    def __init__(
        self, cluster: Cluster, settings: Settings, registry: kopf.OperatorRegistry, worker: Worker
    ) -> None:
        self._cluster, self._settings, self._registry = cluster, settings, registry
        self._worker = worker
        self._told_to_end = False
        """Set by signals, in the midst of whatever this thread does: no lock may be taken there."""
        self._served = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Note SIGTERM and SIGINT from now on; call from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end = True

    def _follow(self) -> bool:
        """Run kopf; returns whether the operator was told to end."""
        try:
            asyncio.run(self._operate())
        except Exception as error:
            if getattr(error, "status", None) != _NOT_FOUND:
                raise
            log.warning("Trenchcoats are not served any more: %s", error)
            return False
        finally:
            self._loop, self._served = None, False
        return True

    async def _operate(self) -> None:
        self._loop = asyncio.get_running_loop()
        handing_over = asyncio.create_task(self._hand_over())
        try:
            await kopf.operator(
                registry=self._registry,
                standalone=True,
                clusterwide=not self._settings.namespaces,
                namespaces=self._settings.namespaces,
            )
        finally:
            handing_over.cancel()

    async def _hand_over(self) -> None:
        """Tell kopf of a signal that came before it had handlers of its own: nobody else looks for it."""
        while signal.getsignal(signal.SIGTERM) == self._note:
            await asyncio.sleep(_STEP_SECONDS)
        if self._told_to_end:
            signal.raise_signal(signal.SIGTERM)

    def _wait_until_served(self) -> bool:
        """Wait for the definition; False when the operator is told to end meanwhile."""
        self.listen()  # kopf's own handlers are gone when it has ended
        told, first = "", True
        while not self._told_to_end:
            if self._is_served():
                if not first:
                    self._pause(_SETTLE_SECONDS)
                return not self._told_to_end
            first = False
            if told != (told := self.ready()):
                log.warning("waits: %s", told)
            self._pause(_LOOK_SECONDS)
        return False

    def _pause(self, seconds: float) -> None:
        """Let time pass, in steps: a signal that is noted just before a wait ends none."""
        end = time.monotonic() + seconds
        while not self._told_to_end and time.monotonic() < end:
            time.sleep(_STEP_SECONDS)

    def _is_served(self) -> bool:
        try:
            return self._cluster.serves(kinds.TRENCHCOATS)
        except ApiError as error:
            log.warning("it cannot be found out whether Trenchcoats are served: %s", error)
            return False
