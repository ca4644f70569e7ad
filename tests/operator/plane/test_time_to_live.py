"""A policy of the cluster has Jobs deleted at their end; the real Job and TTL controllers do so."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes import client
from trenchcoat_api.exitcodes import ExitCode

from tests.control_plane import Body, ControlPlane
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, namespace, operator, policy, row
from tests.waiting import until

pytestmark = pytest.mark.slow

JOBS = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"]}


def ended(pod: Any, exit_code: int) -> Body:
    """The status of a pod whose container has ended, as a kubelet writes it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    terminated = {"exitCode": exit_code, "reason": "Error", "startedAt": now, "finishedAt": now}
    [container] = pod.spec.containers
    status = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": terminated},
    }
    return {"status": {"phase": "Failed", "containerStatuses": [status]}}


def test_a_failure_is_remembered_though_a_policy_has_jobs_deleted_at_their_end(
    plane: ControlPlane, server: MinioServer
) -> None:
    where = namespace(plane, "short-lived")
    policy(plane, where, JOBS, "Object{spec: Object.spec{ttlSecondsAfterFinished: 0}}")
    batch = client.BatchV1Api(plane.api)

    def in_force() -> bool:
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
        job = {"metadata": {"name": "probe"}, "spec": {"template": template}}
        made = batch.create_namespaced_job(where, job, dry_run="All")
        return made.spec.ttl_seconds_after_finished == 0

    until(in_force, 120, "the policy is in force")
    run = Run(plane, server, where, "short-lived")
    run.begin(done=())
    with operator(plane) as loop:
        loop.until(run, lambda _: run.pods(), 120, "its pod is made")
        [pod] = run.pods()
        loop.until(
            run,
            lambda _: run.jobs()[0].spec.ttl_seconds_after_finished is None,
            120,
            "its time to live is taken away",
        )
        failed = ended(pod, ExitCode.BAD_INPUT)
        plane.core.patch_namespaced_pod_status(pod.metadata.name, where, failed)
        failure = loop.until(
            run,
            lambda status: (found := row(status, "tokenize")).get("state") == "Failed" and found,
            120,
            "its failure is told",
        )
        assert failure["attempt"] == 1
        time.sleep(3)  # the TTL controller would long have deleted it
        loop.until(run, lambda status: row(status, "tokenize").get("state") == "Failed", 120, "it stays so")
        [job] = run.jobs()
        assert job.metadata.name.endswith("-1") and not job.metadata.deletion_timestamp
        batch.delete_namespaced_job(job.metadata.name, where, propagation_policy="Background")
        loop.until(
            run,
            lambda status: row(status, "tokenize").get("attempt") == 2,
            120,
            "a person who deletes it asks for another",
        )
    plane.delete("short-lived", where)
