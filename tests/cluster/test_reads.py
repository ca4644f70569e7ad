"""What a look asks a real API server for; the operator runs here, in place of the installed one."""

import json
import time
from collections import Counter

from demo.environment import Environment
from demo.watch import condition
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.settings import Settings

from tests.cluster.kubelet import stage
from tests.cluster.objects import apply, connect, delete, read, row
from tests.waiting import OFTEN, until

NAME = "reads"


def test_a_look_reads_a_trenchcoat_anew_only_when_a_newer_one_is_known(
    environment: Environment, alone: None
) -> None:
    asked: Counter[tuple[str, str]] = Counter()
    cluster = Cluster(connect(environment), lambda verb, resource, *_: asked.update([(verb, resource)]))
    operator = Reconciler(cluster, Settings(), Metrics(), lambda *_: None)
    key = Key(environment.namespace, NAME)
    with stage(environment, NAME) as play, environment.store_address() as address:
        apply(environment, play.trenchcoat(NAME, store__endpoint=f"http://{address}"))
        try:

            def runs() -> bool:
                operator.step(key)
                return row(read(environment, NAME), "tokenize").get("state") == "Running"

            until(runs, 120, "its first pod runs", most=OFTEN)
            quiet = 0
            while quiet < 5:  # until there is nothing to tell
                before = asked["patch", "trenchcoats/status"]
                operator.step(key)
                quiet = quiet + 1 if asked["patch", "trenchcoats/status"] == before else 0
                time.sleep(0.2)
            before = asked["get", "trenchcoats"]
            for _ in range(10):
                operator.step(key)
            assert asked["get", "trenchcoats"] == before

            # A change that is heard of is acted upon, whether or not it was seen yet.
            suspend = ("patch", "trenchcoat", NAME, "--type=merge", "-p", '{"spec":{"suspend":true}}')
            changed = json.loads(environment.kubectl(*suspend, "-o", "json"))
            operator.saw(key, changed["metadata"]["resourceVersion"])
            operator.step(key)
            seen = read(environment, NAME)
            assert seen["status"]["observedGeneration"] == changed["metadata"]["generation"]
            assert condition(seen, "Succeeded")["reason"] == "Suspended", seen["status"]
        finally:
            operator.stop()
            delete(environment, NAME)
