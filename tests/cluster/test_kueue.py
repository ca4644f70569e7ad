"""With a queue the real Kueue decides when Jobs run: it admits them, takes one back, lets it go on later."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.environment import REPO, Environment, add_kueue
from demo.watch import condition
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.apply.applier import Applier
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.model.plan import Apply, Plan
from trenchcoat_operator.storage.access import Stores

from tests.cluster.conftest import NAME
from tests.cluster.held import SLOWLY, Gate, prepared
from tests.cluster.objects import apply, connect, delete, events, example, pods, read, succeeded, wait
from tests.cluster.security import restricted_pod
from tests.waiting import until

MINUTES = 60.0
GPUS = 2
QUEUE = "gpus"
SMALL = {
    "data__tokens": 32768,
    "data__heldOutTokens": 4096,
    "layersPerCria": 4,
    "transfer__epochs": 4,
    "criaLora__epochs": 0,
    "evaluate__enabled": False,
    "export__enabled": False,
}


def queued(name: str, queue: str = QUEUE, **changes: Any) -> dict[str, Any]:
    return example(name, **{**SMALL, "scheduling__queueName": queue, **changes})


def queues(namespace: str) -> list[dict[str, Any]]:
    """The example queues, for the namespace and the GPUs of this cluster."""
    bodies = list(yaml.safe_load_all((REPO / "manifests" / "kueue" / "queues.yaml").read_text()))
    for body in bodies:
        if body["kind"] == "LocalQueue":
            body["metadata"]["namespace"] = namespace
        if body["kind"] == "ClusterQueue":
            (gpus,) = (
                quota
                for group in body["spec"]["resourceGroups"]
                for flavor in group["flavors"]
                for quota in flavor["resources"]
                if quota["name"] == "nvidia.com/gpu"
            )
            gpus["nominalQuota"] = GPUS
    return bodies


def test_without_kueue_a_person_is_told(store: Environment):
    if store.command("kubectl", "get", "crd", "workloads.kueue.x-k8s.io", "--ignore-not-found"):
        pytest.skip("this cluster was kept and has Kueue already")
    apply(store, queued("no-kueue"))
    try:
        store.kubectl("wait", "--for=condition=Stalled", "trenchcoat/no-kueue", "--timeout=120s")
        said = condition(store.get("trenchcoat", "no-kueue"), "Stalled")
        assert (said["reason"], "install it" in said["message"]) == ("KueueMissing", True)
        assert not pods(store, "no-kueue")
    finally:
        delete(store, "no-kueue")


@pytest.fixture(scope="module")
def kueue(store: Environment) -> Environment:
    """The cluster with Kueue and the example queues."""
    add_kueue(store.namespace, name=NAME)
    for body in queues(store.namespace):
        apply(store, body)
    return store


def test_a_queue_that_is_not_there_is_told_in_kueues_words(kueue: Environment):
    apply(kueue, queued("no-queue", queue="nowhere"))
    try:
        kueue.kubectl("wait", "--for=condition=Stalled", "trenchcoat/no-queue", "--timeout=120s")
        said = condition(kueue.get("trenchcoat", "no-queue"), "Stalled")
        assert said["reason"] == "QueueInadmissible"
        assert "LocalQueue nowhere doesn't exist" in said["message"]
        assert "spec.scheduling.queueName" in said["message"]
    finally:
        delete(kueue, "no-queue")


def test_a_queue_named_default_takes_jobs_that_name_none_and_kueues_words_are_told(kueue: Environment):
    """Kueue labels the Jobs by itself; nothing has quota in the queue, as no ClusterQueue is behind it."""
    body = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": "default"},
        "spec": {"clusterQueue": "nowhere"},
    }
    apply(kueue, body)
    try:
        apply(kueue, example("by-default", **SMALL))

        def told() -> dict[str, Any] | None:
            row = next(iter(read(kueue, "by-default").get("status", {}).get("stages", [])), {})
            return row if row.get("waitingReason") == "Queue" and "Kueue: " in row["message"] else None

        row = until(told, 120, "Kueue's words are told")
        # Kueue says what is amiss a moment after it has made the Workload.
        assert "in LocalQueue default" in row["message"] or "nowhere" in row["message"], row
        assert not pods(kueue, "by-default")
    finally:
        delete(kueue, "by-default")
        kueue.kubectl("delete", "localqueue", "default")


def children(environment: Environment, name: str) -> list[dict[str, Any]]:
    selector = f"trenchcoat.dev/name={name}"
    return environment.get("jobs,pytorchjobs", "-l", selector)["items"]


def urgent_job(image: str, seconds: int, name: str = "urgent") -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": QUEUE, "kueue.x-k8s.io/priority-class": "urgent"}
    template = {"spec": restricted_pod(image, "sleep", str(seconds), gpus=1)}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}


class Firsts:
    """The first that the API server told of each object's `suspend`, by kind and name.

    Watched from before the objects are made, for Kueue may let one run before a watch that is begun has come
    to its first answer.
    """

    def __init__(self, environment: Environment, folder: Path, name: str) -> None:
        self._files: list[Path] = []
        kubectl = shutil.which("kubectl", path=environment.path)
        assert kubectl is not None
        self._processes = []
        for group, kind in (("batch", "jobs"), ("kubeflow.org", "pytorchjobs")):
            path = f"/apis/{group}/v1/namespaces/{environment.namespace}/{kind}"
            path += f"?labelSelector=trenchcoat.dev/name={name}"
            now = json.loads(environment.kubectl("get", "--raw", path))["metadata"]["resourceVersion"]
            words = [kubectl, f"--kubeconfig={environment.kubeconfig}", "get", "--raw"]
            words.append(f"{path}&watch=1&resourceVersion={now}")
            self._files.append(folder / kind)
            with self._files[-1].open("w") as out:
                self._processes.append(subprocess.Popen(words, stdout=out, stderr=subprocess.DEVNULL))

    def end(self) -> dict[tuple[str, str], bool | None]:
        for process in self._processes:
            process.terminate()
            process.wait()
        found: dict[tuple[str, str], bool | None] = {}
        whole_lines = [line for file in self._files for line in file.read_text().split("\n")[:-1]]
        for line in whole_lines:
            body = json.loads(line)["object"]
            spec = body["spec"].get("runPolicy", body["spec"])
            found.setdefault((body["kind"], body["metadata"]["name"]), spec.get("suspend"))
        return found


def used_gpus(environment: Environment) -> int:
    """GPUs that Kueue's queue counts as used, as its status says a moment later."""
    flavors = environment.get("clusterqueue", "gpus").get("status", {}).get("flavorsUsage", [])
    resources = [item for flavor in flavors for item in flavor["resources"]]
    return sum(int(item["total"]) for item in resources if item["name"] == "nvidia.com/gpu")


class Story:
    """What is seen while a Trenchcoat shares its queue with something urgent."""

    def __init__(self, environment: Environment, name: str) -> None:
        self.environment, self.name = environment, name
        self.made: dict[str, dict[str, Any]] = {}
        self.most_gpus = 0
        self.waited: list[str] = []
        self.first: dict[tuple[str, str], bool | None] = {}

    def __call__(self, body: dict[str, Any]) -> None:
        for child in children(self.environment, self.name):
            self.made[child["metadata"]["name"]] = child
        self.most_gpus = max(self.most_gpus, used_gpus(self.environment))
        for row in body.get("status", {}).get("crias", []):
            if row.get("waitingReason") == "Queue":
                self.waited.append(row["message"])


@pytest.fixture(scope="module")
def slow(kueue: Environment) -> Iterator[dict[str, Any]]:
    """Pods of Crias that are at work for minutes, unless they are let go."""
    with prepared(kueue, "slow", SLOWLY) as settings:
        yield {"cria": settings}


@pytest.fixture(scope="module")
def preempted(
    kueue: Environment, slow: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], Story, dict[str, Any]]]:
    """A run of three Crias on two GPUs; in the middle something urgent takes one GPU for a while."""
    story = Story(kueue, "queued")
    firsts = Firsts(kueue, tmp_path_factory.mktemp("watched"), "queued")
    apply(kueue, queued("queued", scheduling__workloadPriorityClassName="batch", pods=slow))
    let_go = Gate(kueue, "queued", "trenchcoat.dev/stage=cria")

    def to_the_end(body: dict[str, Any]) -> None:
        story(body)
        let_go(body)

    def one_gave_way(body: dict[str, Any]) -> bool:
        return any(row["message"].startswith("Kueue: Preempted") for row in waiting(body))

    try:
        wait(kueue, "queued", two_at_work, timeout=12 * MINUTES, watch=story)
        apply(kueue, urgent_job(kueue.trainer_image, seconds=20))
        body = wait(kueue, "queued", one_gave_way, timeout=3 * MINUTES, watch=story)
        (given_way,) = [row for row in waiting(body) if row["message"].startswith("Kueue: Preempted")]
        kueue.kubectl("wait", "--for=condition=Complete", "job/urgent", "--timeout=300s")
        body = wait(kueue, "queued", succeeded, timeout=12 * MINUTES, watch=to_the_end)
        story.first = firsts.end()
        yield body, story, given_way
    finally:
        firsts.end()
        kueue.kubectl("delete", "job", "urgent", "--ignore-not-found")
        delete(kueue, "queued")


def two_at_work(body: dict[str, Any]) -> bool:
    return sum(row.get("step", 0) > 2 for row in running(body)) == GPUS


def running(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in body.get("status", {}).get("crias", []) if row["state"] == "Running"]


def waiting(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in body.get("status", {}).get("crias", []) if row.get("waitingReason") == "Queue"]


def test_jobs_start_suspended_and_kueue_admits_them(preempted):
    _, story, _ = preempted
    assert {kind for kind, _ in story.first} == {"Job", "PyTorchJob"}
    assert set(story.first.values()) == {True}, story.first
    assert {name for _, name in story.first} >= set(story.made)
    for name, child in story.made.items():
        labels = child["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == QUEUE, name
        assert labels["kueue.x-k8s.io/priority-class"] == "batch", name
    assert story.most_gpus == GPUS


def test_what_gave_way_went_on_as_the_same_try_from_its_checkpoint(kueue: Environment, preempted):
    body, story, given_way = preempted
    rows = body["status"]["crias"]
    assert {row["state"] for row in rows} == {"Succeeded"}
    assert {row["attempt"] for row in rows} == {1}
    assert not [row for row in rows if row.get("lastFailure")]
    index = given_way["index"]
    (job,) = [child for name, child in story.made.items() if name.startswith(f"queued-cria-{index:02d}-")]
    log = kueue.kubectl("logs", f"job/{job['metadata']['name']}", "--tail=-1")
    assert "going on from step" in log
    told = [event["message"] for event in events(kueue, "queued") if event["reason"] == "Requeued"]
    assert any(message.startswith(f"Cria {index} ") for message in told)


def test_the_row_says_why_a_cria_waits_in_kueues_words(preempted):
    _, story, given_way = preempted
    assert "Preempted to accommodate a workload" in given_way["message"]
    quota = "insufficient unused quota for nvidia.com/gpu in flavor gpu-nodes"
    assert any(quota in message for message in story.waited), set(story.waited)


def collect_row(body: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in body.get("status", {}).get("stages", []) if row["name"] == "collect"]
    return rows[0] if rows else {"state": "Pending", "message": ""}


@pytest.mark.parametrize(("kind", "sequences"), [("PyTorchJob", 2048), ("IndexedJob", 2047)])
def test_a_gang_gives_way_as_a_whole_and_goes_on_as_the_same_try(
    kueue: Environment, kind: str, sequences: int
):
    # So much text that collection goes on long after it is seen to have begun; one boundary, to store less.
    long = {"data__tokens": sequences * 512, "layersPerCria": 6, "scheduling__distributed": kind}
    name = f"gang-{kind.lower()}"
    apply(kueue, queued(name, scheduling__workloadPriorityClassName="batch", **long))
    selector = "trenchcoat.dev/stage=collect"
    try:
        wait(kueue, name, lambda body: collect_row(body).get("step", 0) > 0, timeout=4 * MINUTES)
        first = {pod["metadata"]["uid"] for pod in pods(kueue, name, selector)}
        assert len(first) == GPUS
        apply(kueue, urgent_job(kueue.trainer_image, seconds=5, name="more-urgent"))

        def gave_way(body: dict[str, Any]) -> bool:
            assert collect_row(body)["state"] != "Succeeded", "it ended before anything urgent came"
            return collect_row(body).get("message", "").startswith("Kueue: Preempted")

        wait(kueue, name, gave_way, timeout=2 * MINUTES)
        kueue.kubectl("wait", "--for=condition=Complete", "job/more-urgent", "--timeout=300s")
        until(
            lambda: not first & {pod["metadata"]["uid"] for pod in pods(kueue, name, selector)},
            120,
            "the gang's first pods are gone",
        )
        body = wait(kueue, name, lambda body: collect_row(body)["state"] == "Succeeded", timeout=6 * MINUTES)
        row = collect_row(body)
        assert row["attempt"] == 1
        assert not row.get("lastFailure")
        told = [event["message"] for event in events(kueue, name) if event["reason"] == "Requeued"]
        assert any(message.startswith("collect ") for message in told), told
    finally:
        kueue.kubectl("delete", "job", "more-urgent", "--ignore-not-found")
        delete(kueue, name)


def cria_jobs(environment: Environment, name: str) -> list[dict[str, Any]]:
    return [child for child in children(environment, name) if "cria" in child["metadata"]["name"]]


def workloads_of(environment: Environment, name: str) -> list[str]:
    """Names of the Jobs and PyTorchJobs of a Trenchcoat that have a Workload and are not over."""
    return [
        body["metadata"]["ownerReferences"][0]["name"]
        for body in environment.get("workloads")["items"]
        if body["metadata"]["ownerReferences"][0]["name"].startswith(f"{name}-")
        and not condition(body, "Finished")
    ]


def log_of(environment: Environment, job: dict[str, Any]) -> str:
    """What its pod wrote; nothing where it has none."""
    return environment.kubectl("logs", f"job/{job['metadata']['name']}", "--tail=-1", check=False)


@pytest.fixture
def at_work(kueue: Environment, slow: dict[str, Any]) -> Iterator[Environment]:
    """A Trenchcoat whose Crias are being trained, on GPUs that nobody of those before holds any more."""
    gangs = "trenchcoat.dev/name in (gang-pytorchjob, gang-indexedjob)"
    kueue.kubectl("wait", "--for=delete", "pod", "-l", gangs, "--timeout=120s")
    apply(kueue, queued("paused", seed=1, scheduling__workloadPriorityClassName="batch", pods=slow))
    try:
        wait(kueue, "paused", two_at_work, timeout=12 * MINUTES)
        yield kueue
    finally:
        delete(kueue, "paused")


def test_suspend_belongs_to_kueue_and_a_paused_run_leaves_the_queue(at_work: Environment):
    job = next(child for child in cria_jobs(at_work, "paused") if child["spec"]["suspend"] is False)
    # An operator that died before it could say that it made the Job makes it once more.
    anew = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {key: job["metadata"][key] for key in ("name", "namespace", "labels")},
        "spec": {"suspend": True, "template": {"spec": restricted_pod(at_work.trainer_image, "true")}},
    }
    cluster = Cluster(connect(at_work))
    trenchcoat = Trenchcoat.from_object(at_work.get("trenchcoat", "paused"))
    Applier(cluster, Stores(cluster, lambda *_: None), Versions()).act(
        trenchcoat, Plan((Apply(anew),), trenchcoat.status, (), None)
    )
    now = at_work.get("job", job["metadata"]["name"])
    assert now["spec"] == job["spec"]

    until(lambda: used_gpus(at_work) > 0, 120, "Kueue counts some")
    at_work.kubectl("patch", "trenchcoat", "paused", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(
        lambda: (
            not workloads_of(at_work, "paused") and not pods(at_work, "paused", "trenchcoat.dev/stage=cria")
        ),
        120,
        "Kueue holds no quota for it, and no pod is there",
    )
    until(lambda: used_gpus(at_work) == 0, 120, "Kueue counts none")

    at_work.kubectl("patch", "trenchcoat", "paused", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait(at_work, "paused", lambda body: len(running(body)) == GPUS, timeout=6 * MINUTES)
    until(
        lambda: any("going on from step" in log_of(at_work, job) for job in cria_jobs(at_work, "paused")),
        180,
        "one goes on from its checkpoint",
    )
