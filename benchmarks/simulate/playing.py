"""Kubelets and stage programs, played on a real API server: pods run for as long as the plan says.

What a stage's checkpoints have saved outlives its pods, as it does in the store.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException
from minio import Minio
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import DISTRIBUTED, Stage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operator"))

from player import LAYERS, manifest, progress

POLL_SECONDS = 0.2
CHECKPOINT_SECONDS = 30.0
"""Of the stages, before they are compressed."""
JOB_NAME = "batch.kubernetes.io/job-name"


@dataclass
class Attempt:
    """One Job's pods at work."""

    artifact: Artifact
    pods: dict[str, Any]
    began: float
    had: float
    """Seconds of work that were saved before."""


@dataclass
class Bar:
    """From when to when something ran, for the picture."""

    name: str
    began: float
    ended: float
    outcome: str


@dataclass
class Played:
    """What has happened."""

    bars: list[Bar] = field(default_factory=list)
    lost: float = 0.0
    """Seconds of work that no checkpoint held when a node went, compressed."""


class Player(threading.Thread):
    """Plays until it is told to stop."""

    def __init__(self, plane: Any, store: Minio, bucket: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._plane, self._store, self._bucket = plane, store, bucket
        self._namespace = body["metadata"]["namespace"]
        spec = Trenchcoat.from_object(body).spec
        wanted = Artifacts(spec).all(cria_ranges(LAYERS, spec.layers_per_cria))
        self._artifacts = {item.name: item for item in wanted}
        self._gang = {Stage.COLLECT: spec.collect.nodes, Stage.STITCH: spec.stitch.nodes}
        self._attempts: dict[str, Attempt] = {}
        self._saved: dict[str, float] = {}
        self._over: set[str] = set()
        self._stop_asked = threading.Event()
        self._seconds: dict[Stage, float] = {}
        self._every = CHECKPOINT_SECONDS
        self.played = Played()
        self.fault: BaseException | None = None

    def compress(self, seconds: dict[Stage, float], factor: float) -> None:
        """Set how long stages take, so many times less than planned."""
        self._seconds = {stage: value / factor for stage, value in seconds.items()}
        self._every = CHECKPOINT_SECONDS / factor

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(30)

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self._step()
                time.sleep(POLL_SECONDS)
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            self.fault = error

    def take_node(self, name: str) -> None:
        """A node is reclaimed: its pods end as targets of a disruption, and it is gone."""
        for pod in self._pods():
            if pod.spec.node_name == name and pod.status.phase in ("Pending", "Running"):
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                reason = {"reason": "TerminationByKubelet", "lastTransitionTime": now}
                gone = {"type": "DisruptionTarget", "status": "True", **reason}
                self._patch(pod, {"phase": "Failed", "reason": "Terminated", "conditions": [gone]})
        self._plane.core.delete_node(name)

    def half_done(self, stage: Stage) -> str | None:
        """A node where something of a stage is half done; None where nothing is."""
        now = time.monotonic()
        for attempt in list(self._attempts.values()):
            done = attempt.had + now - attempt.began
            if attempt.artifact.stage is stage and done > self._seconds[stage] / 2:
                return str(next(iter(attempt.pods.values())).spec.node_name)
        return None

    def _pods(self) -> list[Any]:
        return list(
            self._plane.core.list_namespaced_pod(self._namespace, label_selector=constants.LABEL_STAGE).items
        )

    def _step(self) -> None:
        by_job: dict[str, list[Any]] = {}
        for pod in self._pods():
            if pod.metadata.deletion_timestamp:
                self._remove(pod)
            elif pod.status.phase == "Pending" and pod.spec.node_name:
                self._run_pod(pod)
            if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp:
                by_job.setdefault(pod.metadata.labels[JOB_NAME], []).append(pod)
        for job, attempt in list(self._attempts.items()):
            if len(by_job.get(job, [])) < len(attempt.pods):
                self._broken(job, attempt)
        now = time.monotonic()
        for job, pods in by_job.items():
            if job not in self._attempts and job not in self._over:
                self._begin(job, pods, now)
            if job in self._attempts:
                self._go_on(job, self._attempts[job], pods, now)

    def _begin(self, job: str, pods: list[Any], now: float) -> None:
        labels = pods[0].metadata.labels
        stage, cria = Stage(labels[constants.LABEL_STAGE]), labels.get(constants.LABEL_CRIA)
        if len(pods) < self._gang.get(stage, 1) and stage in DISTRIBUTED:
            return
        artifact = self._artifacts[stage.value if cria is None else f"{stage.value}-{int(cria):02d}"]
        had = self._saved.get(artifact.key, 0.0)
        self._attempts[job] = Attempt(artifact, {pod.metadata.name: pod for pod in pods}, now, had)

    def _go_on(self, job: str, attempt: Attempt, pods: list[Any], now: float) -> None:
        whole, done = self._seconds[attempt.artifact.stage], attempt.had + now - attempt.began
        saved = min(whole, attempt.had + (now - attempt.began) // self._every * self._every)
        self._saved[attempt.artifact.key] = saved
        if done < whole:
            return
        made = manifest(attempt.artifact, datetime.now(UTC))
        self._put(attempt.artifact.manifest_path, made.model_dump_json(by_alias=True))
        for pod in pods:
            self._end_pod(pod)
        self._note(job, attempt, "complete")

    def _broken(self, job: str, attempt: Attempt) -> None:
        saved = self._saved.get(attempt.artifact.key, 0.0)
        self.played.lost += attempt.had + time.monotonic() - attempt.began - saved
        report = progress(attempt.artifact, saved / self._seconds[attempt.artifact.stage])
        told = report.model_copy(update={"saved_fraction": report.fraction})
        self._put(attempt.artifact.progress_path, told.model_dump_json(by_alias=True))
        self._note(job, attempt, "lost")

    def _note(self, job: str, attempt: Attempt, outcome: str) -> None:
        bar = Bar(attempt.artifact.name, attempt.began, time.monotonic(), outcome)
        self.played.bars.append(bar)
        del self._attempts[job]
        self._over.add(job)

    def _put(self, path: str, text: str) -> None:
        data = text.encode()
        self._store.put_object(
            bucket_name=self._bucket, object_name=path, data=io.BytesIO(data), length=len(data)
        )

    def _run_pod(self, pod: Any) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._patch(pod, self._status(pod, "Running", {"running": {"startedAt": now}}))

    def _end_pod(self, pod: Any) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        self._patch(pod, self._status(pod, "Succeeded", {"terminated": end}))

    @staticmethod
    def _status(pod: Any, phase: str, state: dict[str, Any]) -> dict[str, Any]:
        running = "running" in state
        containers = [
            {"name": item.name, "image": item.image, "imageID": "", "ready": running, "restartCount": 0}
            | {"state": state}
            for item in pod.spec.containers
        ]
        return {"phase": phase, "containerStatuses": containers}

    def _patch(self, pod: Any, status: dict[str, Any]) -> None:
        try:
            self._plane.core.patch_namespaced_pod_status(
                pod.metadata.name, self._namespace, {"status": status}
            )
        except ApiException as error:
            if error.status != 404:  # it was deleted meanwhile
                raise

    def _remove(self, pod: Any) -> None:
        try:
            self._plane.core.delete_namespaced_pod(pod.metadata.name, self._namespace, grace_period_seconds=0)
        except ApiException as error:
            if error.status != 404:
                raise
