"""The operator dies after everything that it writes to a real API server, and nothing runs twice.

The operator's own code runs here, in place of the installed one; each operator dies after its first write,
and the next one knows nothing. Jobs are made by the real controllers and bound by the real scheduler; their
pods run in name only, and the test writes the manifests that their programs would.
"""

from collections import Counter
from typing import Any

import pytest
from demo.environment import Environment
from demo.watch import condition
from trenchcoat_api import constants
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.queue import Key
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.worker import Reconciler

from tests.cluster.kubelet import STAGES, stage
from tests.cluster.objects import apply, connect, delete

NAME = "crashes"


class Killed(BaseException):
    """The operator's process is gone."""


class Mortal(Cluster):
    """The API server, as an operator sees it who dies right after a write."""

    def _call(self, method: str, path: str, **more: Any) -> Any:
        answer = super()._call(method, path, **more)
        if method != "GET":
            raise Killed(f"{method} {path}")
        return answer


def live_once(cluster: Cluster, namespace: str) -> None:
    """One step of an operator that knows nothing."""
    operator = Reconciler(cluster, Settings(), Metrics(), lambda *_: None)
    try:
        operator.step(Key(namespace, NAME))
    finally:
        operator.stop()


@pytest.mark.timeout(300)
def test_operators_that_die_after_every_write_come_to_the_end_and_run_nothing_twice(
    environment: Environment, alone: None
) -> None:
    api = connect(environment)
    with stage(environment, NAME) as play, environment.store_address() as address:
        body = play.trenchcoat(NAME, store__endpoint=f"http://{address}", retention="DeleteIntermediate")
        artifacts = play.artifacts(body)
        apply(environment, body)
        deaths = still = 0
        try:
            while still < 200:
                try:
                    live_once(Mortal(api), environment.namespace)
                except Killed:
                    deaths, still = deaths + 1, 0
                    continue
                if condition(environment.get("trenchcoat", NAME), "Succeeded").get("status") == "True":
                    break
                still = 0 if play.play(artifacts) else still + 1
            # A manifest is there before its Job's own status says that it is over, which is told once, too.
            environment.kubectl(
                "wait", "jobs", "-l", f"{constants.LABEL_NAME}={NAME}", "--for=condition=Complete"
            )
            for _ in range(20):
                try:
                    live_once(Mortal(api), environment.namespace)
                except Killed:
                    deaths += 1
            seen = environment.get("trenchcoat", NAME)
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
            assert play.stored() == set(STAGES) - {"collect", "shard"}
            # One that looks again has nothing to write.
            live_once(Mortal(api), environment.namespace)
            print(f"{deaths} operators died")
        finally:
            delete(environment, NAME)
