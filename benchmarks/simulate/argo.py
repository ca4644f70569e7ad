"""The same Jobs as an Argo Workflow orders them: its real controller, and its executor played.

A step creates a Job and ends with it, as Argo's resource templates do; kwok has no executor that would. The
steps' own pods are on a node that is never lost.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from arms import POOL, Arm, job
from cluster import Cluster
from durations import Durations
from rival import LOOK_SECONDS, ORDER
from trenchcoat_api.stages import INPUTS, Stage

from tests.control_plane import node

ARGO = "argoproj.io"
OF = f"workflows.{ARGO}"


def workflow(arm: Arm, durations: Durations) -> dict[str, Any]:
    """A task for each stage and each Cria, after those whose artifacts it needs."""
    tasks: dict[str, Stage] = {}
    for stage in ORDER:
        names = (
            [f"{stage.value}-{n:02d}" for n in range(durations.crias)]
            if stage is Stage.CRIA
            else [stage.value]
        )
        tasks |= dict.fromkeys(names, stage)
    ordered = [
        {
            "name": name,
            "template": name,
            "dependencies": [other for other, its in tasks.items() if its in INPUTS[stage]],
        }
        for name, stage in tasks.items()
    ]
    templates = [
        {
            "name": name,
            "resource": {
                "action": "create",
                "manifest": json.dumps(_job(arm, durations, name, stage)),
                "successCondition": f"status.succeeded == {durations.pods(stage)}",
            },
        }
        for name, stage in tasks.items()
    ]
    return {
        "apiVersion": f"{ARGO}/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": arm.name, "namespace": arm.name},
        "spec": {
            "entrypoint": "run",
            "nodeSelector": {POOL: f"{arm.name}-workflow"},
            "templates": [{"name": "run", "dag": {"tasks": ordered}}, *templates],
        },
    }


def _job(arm: Arm, durations: Durations, name: str, stage: Stage) -> dict[str, Any]:
    pods = durations.pods(stage)
    body = job(
        arm, name, durations.pool(stage), durations.gpus(stage), queue="ours", pods=pods, parallel=pods
    )
    return {"apiVersion": "batch/v1", "kind": "Job", **body}


class ArgoRival(threading.Thread):
    """Submits the Workflow, and plays the executor in its pods."""

    def __init__(self, made: Cluster, arm: Arm, durations: Durations) -> None:
        from kubernetes import client

        super().__init__(daemon=True)
        self._made, self._arm, self._durations = made, arm, durations
        self._batch = client.BatchV1Api(made.plane.api)
        self._objects = client.CustomObjectsApi(made.plane.api)
        self._stopped = threading.Event()
        self._waits: dict[str, tuple[str, dict[str, Any]]] = {}
        """By the name of a Job: the Workflow's node that waits for it, and its pod."""
        self._seen: set[str] = set()
        self.ended: float | None = None
        self.fault: BaseException | None = None
        node(
            made.plane,
            f"{arm.name}-workflow",
            {"cpu": "64", "memory": "64Gi", "pods": "500"},
            labels={POOL: f"{arm.name}-workflow"},
        )

    def stop(self) -> None:
        """Play no more."""
        self._stopped.set()

    def run(self) -> None:
        try:
            self._made.apply(workflow(self._arm, self._durations))
            while not self._has_ended():
                if self._stopped.wait(LOOK_SECONDS):
                    return
                self._begin()
                self._end()
            self.ended = time.monotonic()
        except BaseException as error:  # noqa: BLE001  (the thread's end is the benchmark's)
            if not self._stopped.is_set():
                self.fault = error

    def _begin(self) -> None:
        """Create the Jobs of steps whose pods have come to run."""
        selector = f"{OF}/workflow={self._arm.name}"
        answer = self._made.plane.core.list_namespaced_pod(
            self._arm.name,
            label_selector=selector,
            field_selector="status.phase=Running",
            _preload_content=False,
        )
        for pod in json.loads(answer.data)["items"]:
            if pod["metadata"]["uid"] in self._seen:
                continue
            self._seen.add(pod["metadata"]["uid"])
            variables = {item["name"]: item.get("value") for item in pod["spec"]["initContainers"][0]["env"]}
            body = json.loads(json.loads(variables["ARGO_TEMPLATE"])["resource"]["manifest"])
            self._batch.create_namespaced_job(self._arm.name, body)
            step = pod["metadata"]["annotations"][f"{OF}/node-id"]
            self._waits[body["metadata"]["name"]] = (step, pod)

    def _end(self) -> None:
        """End the pods of steps whose Jobs are complete."""
        if not self._waits:
            return
        answer = self._batch.list_namespaced_job(self._arm.name, _preload_content=False)
        for item in json.loads(answer.data)["items"]:
            name = item["metadata"]["name"]
            held = {one["type"] for one in item["status"].get("conditions", []) if one["status"] == "True"}
            if name in self._waits and "Failed" in held:
                raise RuntimeError(f"{self._arm.name}: Job {name} failed")
            if name in self._waits and "Complete" in held:
                self._report(*self._waits.pop(name))

    def _report(self, step: str, pod: dict[str, Any]) -> None:
        """Say that a step is done, as the executor does, and end its pod."""
        labels = {f"{OF}/workflow": self._arm.name, f"{OF}/report-outputs-completed": "true"}
        result = {
            "apiVersion": f"{ARGO}/v1alpha1",
            "kind": "WorkflowTaskResult",
            "metadata": {"name": step, "labels": labels},
        }
        where = (ARGO, "v1alpha1", self._arm.name)
        self._objects.create_namespaced_custom_object(*where, "workflowtaskresults", result)
        ended = {"exitCode": 0, "reason": "Completed"}
        containers = [
            {"name": item["name"], "image": item["image"], "imageID": "", "ready": False, "restartCount": 0}
            | {"state": {"terminated": ended}}
            for item in pod["spec"]["containers"]
        ]
        status = {"status": {"phase": "Succeeded", "containerStatuses": containers}}
        self._made.plane.core.patch_namespaced_pod_status(pod["metadata"]["name"], self._arm.name, status)

    def _has_ended(self) -> bool:
        if self._waits:
            return False
        where = (ARGO, "v1alpha1", self._arm.name, "workflows", self._arm.name)
        phase = self._objects.get_namespaced_custom_object(*where).get("status", {}).get("phase", "")
        if phase in ("Failed", "Error"):
            raise RuntimeError(f"{self._arm.name}: the Workflow ended as {phase}")
        return str(phase) == "Succeeded"
