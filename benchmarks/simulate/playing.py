"""Stage programs, played on a real API server: pods that run end when the plan says that their work is done.

What a Trenchcoat's checkpoints have saved outlives its pods, as it does in the store. kwok plays kubelets.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from arms import ARGO, RIVAL, TRENCHCOAT, Arm
from cluster import Cluster, bucket
from durations import Durations
from kubernetes.client.exceptions import ApiException
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.pace import Pace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operator"))

from player import LAYERS, Api, manifest, progress

STEP_SECONDS = 0.05
REPORT_SECONDS = 2.0
CHECKPOINT_SECONDS = 30.0
"""Of the stages, before they are compressed."""
JOB_NAMES = ("batch.kubernetes.io/job-name", "training.kubeflow.org/job-name")
OF_WORKFLOW = "workflows.argoproj.io/workflow"
INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Work:
    """What one pod, or the pods of a gang, do together."""

    id: str
    name: str
    seconds: float
    pods: int
    gpus: int
    """Of one pod."""
    pool: str = ""


@dataclass
class Attempt:
    """Pods at work."""

    work: Work
    pods: dict[str, Any]
    began: float
    had: float
    """Seconds of work that were saved before."""
    told: float = 0.0
    pace: Pace = field(default_factory=Pace)
    """By which the programs of stages tell how long they have left."""


@dataclass
class Bar:
    """From when to when something ran."""

    name: str
    began: float
    ended: float
    outcome: str
    gpus: int
    pool: str
    lost: float = 0.0
    """Seconds of work that nothing held when it ended."""


class Script:
    """What the pods of an arm do: of its stages, and of its tenants."""

    def __init__(self, arm: Arm, made: Cluster, durations: Durations, body: dict[str, Any] | None) -> None:
        self.arm, self._made, self._durations = arm, made, durations
        self.bars: list[Bar] = []
        self.tenants: dict[str, tuple[float, int, str]] = {}
        """Seconds, GPUs and pool of a tenant's Job, by its name."""
        self.saved: dict[str, float] = {}
        self._artifacts: dict[str, Artifact] = {}
        if body is not None:
            spec = Trenchcoat.from_object(body).spec
            wanted = Artifacts(spec).all(cria_ranges(LAYERS, spec.layers_per_cria))
            self._artifacts = {item.name: item for item in wanted}

    def work(self, pod: dict[str, Any]) -> Work:
        """What a pod is there for."""
        labels = pod["metadata"]["labels"]
        job = next(labels[name] for name in JOB_NAMES if name in labels)
        if job in self.tenants:
            seconds, gpus, pool = self.tenants[job]
            return Work(job, job, seconds, 1, gpus, pool)
        if self.arm.kind == TRENCHCOAT:
            stage, cria = Stage(labels[constants.LABEL_STAGE]), labels.get(constants.LABEL_CRIA)
            identity = job
        else:
            name, _, number = job.partition("-")  # Argo has a Job for each Cria
            stage, cria = Stage(name), number or (labels[INDEX] if job == Stage.CRIA else None)
            identity = job if cria is None else f"{name}-{int(cria):02d}"
        name = stage.value if cria is None else f"{stage.value}-{int(cria):02d}"
        seconds = self._durations.seconds[stage] / self.arm.scale
        took, pool = self._durations, self._durations.pool(stage)
        return Work(identity, name, seconds, took.pods(stage), took.gpus(stage), pool)

    @property
    def resumes(self) -> bool:
        """Whether an attempt goes on from what an earlier one has saved."""
        return self.arm.kind not in (RIVAL, ARGO)

    def held(self, attempt: Attempt, now: float) -> float:
        """Seconds of work that the last checkpoint of an attempt holds."""
        every = CHECKPOINT_SECONDS / self.arm.scale
        return min(attempt.work.seconds, attempt.had + (now - attempt.began) // every * every)

    def tell(self, work: Work, share: float, left: float | None, saved: float | None) -> None:
        """Leave progress in the store, as a stage's program does."""
        artifact = self._artifacts.get(work.name)
        if artifact is not None:
            told = {"eta_seconds": left, "saved_fraction": saved}
            report = progress(artifact, min(share, 1.0)).model_copy(update=told)
            self._put(artifact.progress_path, report.model_dump_json(by_alias=True))

    def complete(self, work: Work) -> None:
        """Leave the artifact in the store."""
        artifact = self._artifacts.get(work.name)
        if artifact is not None:
            begun = datetime.now(UTC) - timedelta(seconds=work.seconds)
            made = manifest(artifact, begun)
            self._put(artifact.manifest_path, made.model_dump_json(by_alias=True))

    def _put(self, path: str, text: str) -> None:
        data = text.encode()
        self._made.store.put_object(
            bucket_name=bucket(), object_name=path, data=io.BytesIO(data), length=len(data)
        )


@dataclass
class _Pods:
    """What is known of an arm's pods."""

    by_name: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    """Those that take part in nothing more, by uid."""


class Player:
    """Plays the pods of all arms until it is told to stop."""

    def __init__(self, made: Cluster, api: Api, scripts: list[Script]) -> None:
        self._made, self._api = made, api
        self._scripts = {script.arm.name: script for script in scripts}
        self._pods: dict[str, _Pods] = defaultdict(_Pods)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.fault: BaseException | None = None
        self._workers = ThreadPoolExecutor(8)
        self._threads = [
            threading.Thread(target=self._guarded, args=(target,), daemon=True)
            for target in (self._watch, self._play)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._threads[1].join(30)
        self._workers.shutdown()

    def _guarded(self, target: Any) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            if not self._stop.is_set():
                self.fault = error

    def _watch(self) -> None:
        for event in self._api.watch("/api/v1/pods", self._stop):
            pod = event["object"]
            if OF_WORKFLOW in pod["metadata"].get("labels", {}):
                continue  # argo.py plays it
            pods = self._pods[pod["metadata"]["namespace"]].by_name
            if event["type"] == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed"):
                pods.pop(pod["metadata"]["name"], None)
            else:
                pods[pod["metadata"]["name"]] = pod

    def _play(self) -> None:
        while not self._stop.wait(STEP_SECONDS):
            with self._lock:
                for name, script in self._scripts.items():
                    self._step(script, self._pods[name])

    def _step(self, script: Script, known: _Pods) -> None:
        together: dict[str, list[dict[str, Any]]] = defaultdict(list)
        works: dict[str, Work] = {}
        for pod in list(known.by_name.values()):
            if is_at_work(pod) and pod["metadata"]["uid"] not in known.over:
                work = script.work(pod)
                works[work.id] = work
                together[work.id].append(pod)
        now = time.monotonic()
        for identity, attempt in list(known.attempts.items()):
            there = {pod["metadata"]["uid"] for pod in together[identity]}
            if not attempt.pods.keys() <= there:
                self._break(script, known, attempt, now)
        for identity, work in works.items():
            pods = [pod for pod in together[identity] if pod["metadata"]["uid"] not in known.over]
            if identity not in known.attempts and len(pods) >= work.pods:
                had = script.saved.get(work.name, 0.0) if script.resumes else 0.0
                members = {pod["metadata"]["uid"]: pod for pod in pods}
                known.attempts[identity] = Attempt(work, members, now, had, now)
        for attempt in list(known.attempts.values()):
            self._go_on(script, known, attempt, now)

    def _go_on(self, script: Script, known: _Pods, attempt: Attempt, now: float) -> None:
        work, ran = attempt.work, now - attempt.began
        script.saved[work.name] = script.held(attempt, now)
        done = attempt.had + ran
        if done < work.seconds:
            if now - attempt.told > REPORT_SECONDS:
                attempt.told = now
                pace = attempt.pace
                pace.note(now, done / work.seconds)
                left = pace.left()
                saved = script.saved[work.name] / work.seconds
                self._later(script.tell, work, done / work.seconds, left, saved)
            return
        self._later(self._complete, script, attempt)
        self._note(script, known, attempt, Bar(work.name, attempt.began, now, "complete", 0, work.pool))

    def _complete(self, script: Script, attempt: Attempt) -> None:
        script.complete(attempt.work)
        for pod in attempt.pods.values():
            self._end(pod)

    def _later(self, do: Callable[..., None], *arguments: Any) -> None:
        """Do what waits for an answer beside all else, or stages would end late."""

        def noted(done: Future[None]) -> None:
            if (error := done.exception()) is not None and not self._stop.is_set():
                self.fault = error

        self._workers.submit(do, *arguments).add_done_callback(noted)

    def _break(self, script: Script, known: _Pods, attempt: Attempt, now: float) -> None:
        work = attempt.work
        saved = script.saved[work.name] = script.held(attempt, now) if script.resumes else 0.0
        if work.name in script.tenants:
            saved = attempt.had + now - attempt.began  # nobody's work that is measured
        lost = attempt.had + now - attempt.began - saved
        self._later(script.tell, work, saved / work.seconds, None, saved / work.seconds)
        bar = Bar(work.name, attempt.began, now, "lost", 0, work.pool, lost)
        # A gang of plain Jobs waits for the pod that comes anew; a stage's ranks end with the first one.
        self._note(script, known, attempt, bar, forget=script.arm.kind == TRENCHCOAT)

    def _note(self, script: Script, known: _Pods, attempt: Attempt, bar: Bar, *, forget: bool = True) -> None:
        bar.gpus = attempt.work.gpus * attempt.work.pods
        script.bars.append(bar)
        del known.attempts[attempt.work.id]
        if forget:
            known.over |= attempt.pods.keys()

    def nodes_at_work(self, arm: Arm) -> list[str]:
        """Nodes on which something of an arm's own runs."""
        script = self._scripts[arm.name]
        with self._lock:
            attempts = list(self._pods[arm.name].attempts.values())
        own = [item for item in attempts if item.work.name not in script.tenants]
        return sorted({pod["spec"]["nodeName"] for item in own for pod in item.pods.values()})

    def take_node(self, arm: Arm, name: str) -> None:
        """A node is reclaimed: its pods end as targets of a disruption, and it is gone."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        reason = {"reason": "TerminationByKubelet", "lastTransitionTime": now}
        gone = {"type": "DisruptionTarget", "status": "True", **reason}
        self._made.plane.core.patch_node(name, {"spec": {"unschedulable": True}})
        with self._lock:
            known = self._pods[arm.name]
            here = [pod for pod in known.by_name.values() if pod["spec"].get("nodeName") == name]
            uids = {pod["metadata"]["uid"] for pod in here}
            for attempt in list(known.attempts.values()):
                if attempt.pods.keys() & uids:
                    self._break(self._scripts[arm.name], known, attempt, time.monotonic())
            known.over |= uids
            for pod in here:
                if pod["status"].get("phase") in ("Pending", "Running"):
                    status = {"phase": "Failed", "reason": "Terminated", "conditions": [gone]}
                    self._patch(pod, status)
        self._made.plane.core.delete_node(name)

    def _end(self, pod: dict[str, Any]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        containers = [
            {"name": item["name"], "image": item["image"], "imageID": "", "ready": False, "restartCount": 0}
            | {"state": {"terminated": end}}
            for item in pod["spec"]["containers"]
        ]
        self._patch(pod, {"phase": "Succeeded", "containerStatuses": containers})

    def _patch(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        where = (pod["metadata"]["name"], pod["metadata"]["namespace"])
        try:
            self._made.plane.core.patch_namespaced_pod_status(*where, {"status": status})
        except ApiException as error:
            if error.status != 404:  # it was deleted meanwhile
                raise


def is_at_work(pod: dict[str, Any]) -> bool:
    """Whether a pod runs and is not to go."""
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
