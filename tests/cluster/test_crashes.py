"""The operator dies after everything that it writes to a real API server, and nothing runs twice.

The operator's own code runs here, in place of the installed one; each operator dies after its first write,
and the next one knows nothing. Jobs are made by the real controllers and bound by the real scheduler; their
pods run in name only, and the test writes the manifests that their programs would.
"""

import time
from collections import Counter
from typing import Any

from demo.environment import Environment
from demo.watch import condition
from trenchcoat_api import constants
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.transport import Request
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.reconcile.assessment.assess import MANIFEST_GRACE
from trenchcoat_operator.settings import Settings

from tests.cluster.kubelet import STAGES, stage
from tests.cluster.objects import Body, apply, connect, delete, gpus_of, pods, read
from tests.waiting import OFTEN, until

NAME = "crashes"
LEFT = set(STAGES) - {"collect", "shard"}
"""Stages of which the store holds artifacts in the end: nothing needs the others' any more."""


class Killed(BaseException):
    """The operator's process is gone."""


class Mortal(Cluster):
    """The API server, as an operator sees it who dies right after a write."""

    def _call(self, request: Request) -> Any:
        answer = super()._call(request)
        if request.method != "GET":
            raise Killed(f"{request} {request.body}")
        return answer


def live_once(cluster: Cluster, namespace: str) -> None:
    """One step of an operator that knows nothing."""
    operator = Reconciler(cluster, Settings(), Metrics(), lambda *_: None)
    try:
        operator.step(Key(namespace, NAME))
    finally:
        operator.stop()


def dies(cluster: Cluster, namespace: str) -> bool:
    """The same; whether it wrote, and died of it."""
    try:
        live_once(cluster, namespace)
    except Killed:
        return True
    return False


def is_told(status: Body, pods: list[Body]) -> bool:
    """Whether a status has all that is heard after an artifact is complete.

    That are the end of its Job or PyTorchJob, which their controllers tell after that of the pods, and the
    last GPU seconds, which are written some seconds later where nothing else changes.
    """
    attempts = [item for row in (*status["stages"], *status["crias"]) for item in row.get("attempts", [])]
    ran = [pod["status"]["containerStatuses"][0]["state"].get("terminated") for pod in pods if gpus_of(pod)]
    if None in ran:
        return False
    counted = status.get("accountedAt", "")  # like all times of Kubernetes, it sorts as text
    return {item.get("outcome") for item in attempts} == {"Succeeded"} and all(
        item["finishedAt"] <= max(counted, item["startedAt"]) for item in ran
    )


def test_operators_that_die_after_every_write_come_to_the_end_and_run_nothing_twice(
    environment: Environment, alone: None
) -> None:
    api = connect(environment)
    with stage(environment, NAME) as play, environment.store_address() as address:
        body = play.trenchcoat(NAME, store__endpoint=f"http://{address}", retention="DeleteIntermediate")
        artifacts = play.artifacts(body)
        apply(environment, body)
        deaths = 0
        try:

            def is_over() -> bool:
                nonlocal deaths
                if dies(Mortal(api), environment.namespace):
                    deaths += 1
                    return False
                play.play(artifacts)
                return condition(read(environment, NAME), "Succeeded").get("status") == "True"

            until(is_over, 600, "it has succeeded", most=OFTEN)

            def everything_told() -> Body | None:
                nonlocal deaths
                if dies(Mortal(api), environment.namespace):
                    deaths += 1
                    return None
                seen = read(environment, NAME)
                told = is_told(seen["status"], pods(environment, NAME)) and play.stored() == LEFT
                return seen if told else None

            seen = until(everything_told, 120, "all is told and deleted", most=OFTEN)
            assert condition(seen, "Succeeded")["status"] == "True", seen["status"]
            assert condition(seen, "Stalled")["status"] == "False"
            assert deaths >= 25
            children = environment.get("jobs,pytorchjobs", "-l", f"{constants.LABEL_NAME}={NAME}")["items"]
            made = Counter(item["metadata"]["annotations"][constants.ANNOTATION_KEY] for item in children)
            assert set(made) == {artifact.key for artifact in artifacts.values()}
            assert set(made.values()) == {1}, "nothing ran twice"
            rows = [*seen["status"]["stages"], *seen["status"]["crias"]]
            assert {row["state"] for row in rows} == {"Succeeded"}
            assert {row["source"] for row in rows} == {"Computed"}
            assert {row["attempt"] for row in rows} == {1}
            assert not [row for row in rows if row.get("lastFailure")]
            # Those that look again have nothing to write, now or when time has gone by.
            time.sleep(MANIFEST_GRACE.total_seconds() + 1)
            for _ in range(3):
                live_once(Mortal(api), environment.namespace)
            print(f"{deaths} operators died")
        finally:
            delete(environment, NAME)
