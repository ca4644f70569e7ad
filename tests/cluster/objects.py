"""Trenchcoats for the cluster tests, and waiting for what becomes of them."""

import json
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from demo.environment import Environment
from demo.watch import condition
from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException
from kubernetes.config import new_client_from_config
from urllib3 import Retry

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny.yaml"
Body = dict[str, Any]
LASTING = 15.0
"""Seconds after which a stall will not pass by itself."""
SMALL_EVALUATION = {
    "evaluate__enabled": True,
    "evaluate__lengthMultiples": [],
    "evaluate__recallSamples": 0,
    "evaluate__samples": 0,
}
"""Held-out text alone."""


def example(name: str, **changes: Any) -> Body:
    """examples/tiny.yaml under another name, with fields set by dotted path below spec (dots as __)."""
    body: Body = yaml.safe_load(EXAMPLE.read_text())
    body["metadata"]["name"] = name
    for path, value in changes.items():
        node = body["spec"]
        *parents, last = path.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return body


def connect(environment: Environment) -> ApiClient:
    """A client for the API server, which asks again where that could not answer, as kubelets do."""
    client = new_client_from_config(str(environment.kubeconfig))
    retries = Retry(total=6, backoff_factor=0.5, status_forcelist=(429, 500, 503, 504), raise_on_status=False)
    client.rest_client.pool_manager.connection_pool_kw["retries"] = retries
    return client


@lru_cache
def _connected(environment: Environment) -> ApiClient:
    return connect(environment)


def read(environment: Environment, name: str) -> Body:
    """A Trenchcoat; to poll it by kubectl would take processor time from what is waited for."""
    objects = CustomObjectsApi(_connected(environment))
    where = ("trenchcoat.dev", "v1alpha1", environment.namespace, "trenchcoats")
    body: Body = objects.get_namespaced_custom_object(*where, name)
    body.setdefault("status", {})  # nobody may have told anything yet, however far its pods are
    return body


def apply(environment: Environment, body: Body) -> None:
    environment.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def delete(environment: Environment, name: str) -> None:
    environment.kubectl("delete", "trenchcoat", name, "--ignore-not-found", "--wait=true", "--timeout=300s")


def wait(
    environment: Environment,
    name: str,
    until: Callable[[Body], bool],
    *,
    timeout: float,
    watch: Callable[[Body], None] = lambda body: None,
) -> Body:
    """Poll a Trenchcoat until a predicate holds; fails soon when it stalls otherwise.

    A stall that passes by itself should not have been told: it is a warning, with its reason.
    """
    deadline = time.monotonic() + timeout
    stalled_since: float | None = None
    while True:
        body = read(environment, name)
        watch(body)
        if until(body):
            return body
        stalled, now = condition(body, "Stalled"), time.monotonic()
        expected = condition(body, "Accepted").get("status") == "False"
        if expected or stalled.get("status") != "True":
            stalled_since = None
        elif stalled_since is None:
            stalled_since = now
            warnings.warn(f"{name} stalls: {stalled.get('reason')}: {stalled.get('message')}", stacklevel=2)
        assert stalled_since is None or now - stalled_since < LASTING, (
            f"{name} stalled: {stalled.get('message')}"
        )
        assert now < deadline, (
            f"{name} did not get there in {timeout:.0f} s: {json.dumps(body['status'], indent=1)}"
        )
        time.sleep(1)


def even_if_stalled(
    environment: Environment, name: str, until: Callable[[Body], object], *, timeout: float
) -> Body:
    """Poll a Trenchcoat until a predicate holds, also while it stalls."""
    deadline = time.monotonic() + timeout
    while not until(body := read(environment, name)):
        assert time.monotonic() < deadline, environment.kubectl("describe", "trenchcoat", name)
        time.sleep(1)
    return body


def succeeded(body: Body) -> bool:
    return condition(body, "Succeeded").get("status") == "True"


def row(body: Body, stage: str) -> Body:
    """The row of a stage in the status; empty while there is none."""
    rows = body.get("status", {}).get("stages", [])
    return next((row for row in rows if row["name"] == stage), {})


def crias(body: Body) -> list[Body]:
    """The rows of Crias in the status; none while it has none."""
    rows: list[Body] = body.get("status", {}).get("crias", [])
    return rows


def cria(body: Body, index: int) -> Body:
    """The row of a Cria; empty while there is none."""
    return next((row for row in crias(body) if row["index"] == index), {})


def pods(environment: Environment, name: str, *selectors: str) -> list[Body]:
    selector = ",".join((f"trenchcoat.dev/name={name}", *selectors))
    core = CoreV1Api(_connected(environment))
    answer = core.list_namespaced_pod(environment.namespace, label_selector=selector, _preload_content=False)
    found: list[Body] = json.loads(answer.data)["items"]
    return found


def log_of(environment: Environment, pod: Body) -> str:
    """What a pod has logged; empty while it cannot be read."""
    core = CoreV1Api(_connected(environment))
    try:
        answer = core.read_namespaced_pod_log(
            pod["metadata"]["name"], environment.namespace, _preload_content=False
        )
    except ApiException:
        return ""  # its container is not there yet, or not any more
    return str(answer.data.decode())


def jobs_of(environment: Environment, name: str, stage: str) -> list[Body]:
    """The Jobs of a stage, the latest last."""
    found = environment.get("jobs", "-l", f"trenchcoat.dev/name={name},trenchcoat.dev/stage={stage}")["items"]
    return sorted(found, key=lambda job: str(job["metadata"]["creationTimestamp"]))


def ranks_that_completed(environment: Environment, job: Body) -> int:
    """How many processes of a Job have logged, in all of its pods, that their stage is complete."""
    stage = job["metadata"]["labels"]["trenchcoat.dev/stage"]
    log = environment.kubectl("logs", f"job/{job['metadata']['name']}", "--all-pods=true", "--tail=-1")
    return log.count(f"{stage}: complete")


def gpus_of(pod: Body) -> int:
    containers = pod["spec"]["containers"]
    return sum(
        int(item.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for item in containers
    )


def events(environment: Environment, name: str) -> list[Body]:
    selector = f"involvedObject.kind=Trenchcoat,involvedObject.name={name}"
    return environment.get("events", "--field-selector", selector)["items"]
