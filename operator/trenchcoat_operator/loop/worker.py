"""The threads: some work on keys that are due, one adds all keys now and then, one sends a scout for GPUs."""

import logging
import threading
import time

from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.errors import StoreError

log = logging.getLogger(__name__)


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
        self._wake = threading.Event()
        self._last_resync = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(settings.workers)
        ]
        for target in (self._resync, self._scout):
            self._threads.append(threading.Thread(target=target, name=target.__name__[1:], daemon=True))

    def start(self) -> None:
        """Start the threads."""
        self._last_resync = time.monotonic()
        self._reconciler.start()
        for thread in self._threads:
            thread.start()

    def served_again(self) -> None:
        """Trenchcoats are served again after a while in which they were not."""
        self._last_resync = time.monotonic()
        self._reconciler.served_again()
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Let what is being worked on end, and stop."""
        self._stop.set()
        self._wake.set()
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
            self._wake.wait(wait)
            self._wake.clear()
