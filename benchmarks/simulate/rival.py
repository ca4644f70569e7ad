"""The same stages as plain Jobs, one after another, as a script submits them that waits for each."""

from __future__ import annotations

import threading
import time

from arms import Arm, job
from cluster import Cluster
from durations import PLAYED, Durations
from trenchcoat_api.stages import Stage

ORDER = PLAYED
LOOK_SECONDS = 0.2


class Rival(threading.Thread):
    """Submits each Job when the one before is complete."""

    def __init__(self, made: Cluster, arm: Arm, durations: Durations) -> None:
        super().__init__(daemon=True)
        self._made, self._arm, self._durations = made, arm, durations
        self._stopped = threading.Event()
        self.ended: float | None = None
        self.fault: BaseException | None = None

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopped.set()

    def run(self) -> None:
        try:
            for stage in ORDER:
                self._submit(stage)
            self.ended = time.monotonic()
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            if not self._stopped.is_set():
                self.fault = error

    def _submit(self, stage: Stage) -> None:
        from kubernetes import client

        batch = client.BatchV1Api(self._made.plane.api)
        pods = self._durations.crias if stage is Stage.CRIA else self._durations.pods(stage)
        parallel = min(pods, self._arm.gpus) if stage is Stage.CRIA else pods
        pool = self._durations.pool(stage)
        gpus = self._durations.gpus(stage)
        body = job(self._arm, stage.value, pool, gpus, queue="ours", pods=pods, parallel=parallel)
        batch.create_namespaced_job(self._arm.name, body)
        while not self._stopped.wait(LOOK_SECONDS):
            status = batch.read_namespaced_job_status(stage.value, self._arm.name).status
            held = {item.type for item in status.conditions or [] if item.status == "True"}
            if "Failed" in held:
                raise RuntimeError(f"{self._arm.name}: Job {stage.value} failed")
            if "Complete" in held:
                return
        raise RuntimeError("stopped")
