"""What runs a stage of several pods: the same programs, whichever kind of object is asked for."""

from typing import Any

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Distributed
from trenchcoat_api.stages import DISTRIBUTED, Stage
from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.model import views
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

from tests.operator import world
from tests.operator.simulation import trenchcoat

DEFAULTS = PodDefaults(image="trainer:1")
Body = dict[str, Any]


def owner(distributed: Distributed | None, *, nodes: int = 3, gpus: int = 1, **spec: Any) -> Trenchcoat:
    gang = {"nodes": nodes, "gpusPerNode": gpus}
    scheduling = spec.pop("scheduling", {}) | ({"distributed": distributed.value} if distributed else {})
    return trenchcoat(
        layersPerCria=12,
        collect=gang,
        stitch=gang,
        evaluate={"adaptedTeacher": "always", **gang, "nodes": min(nodes, 100)},
        scheduling=scheduling,
        **spec,
    )


def work_of(of: Trenchcoat, stage: Stage) -> Work:
    works = graph.build(of.spec, world.manifests_before_crias(of.spec)).works
    return next(work for work in works if work.stage is stage)


def made(of: Trenchcoat, stage: Stage = Stage.STITCH, attempt: int = 1) -> Body:
    return jobs.build(of, work_of(of, stage), attempt, DEFAULTS)


def container(body: Body) -> Body:
    kind = ChildKind(body["kind"])
    (pod, *_) = (spec for _, spec in views.templates(kind, body))
    (found,) = (item for item in pod["containers"] if item["name"] == kind.container)
    return found


def variables(body: Body) -> dict[str, str]:
    """Variables as the kubelet of the pod of index 2 would read them."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    found = {}
    for item in container(body)["env"]:
        field = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        assert field in (None, index)
        found[item["name"]] = "2" if field else item.get("value", "")
    return found


@pytest.mark.parametrize("stage", DISTRIBUTED)
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_either_kind_runs_as_many_pods_with_the_same_programs(stage: Stage, gpus: int) -> None:
    pytorch, indexed = (made(owner(kind, gpus=gpus), stage) for kind in Distributed)
    assert (pytorch["kind"], indexed["kind"]) == ("PyTorchJob", "Job")
    for body in (pytorch, indexed):
        assert sum(count for count, _ in views.templates(ChildKind(body["kind"]), body)) == 3
        child = views.child(ChildKind(body["kind"]), body, "", ())
        assert child is not None and child.gang
    one, other = container(pytorch), container(indexed)
    assert {**one, "env": [], "name": ""} == {**other, "env": [], "name": ""}
    assert [item for item in other["env"] if item in one["env"]] == one["env"]


@pytest.mark.parametrize("distributed", Distributed)
def test_an_evaluation_of_one_pod_is_a_job_on_however_many_gpus(distributed: Distributed) -> None:
    one, eight = (made(owner(distributed, nodes=1, gpus=gpus), Stage.EVALUATE) for gpus in (1, 8))
    for body in (one, eight):
        child = views.child(ChildKind.JOB, body, "", ())
        assert body["kind"] == "Job" and child is not None and not child.gang
    assert "--processes" not in container(one)["args"]
    assert container(eight)["args"][-2:] == ["--processes", "8"]
    assert container(eight)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    pods = [body["spec"]["template"]["spec"] for body in (one, eight)]
    assert ["affinity" in pod for pod in pods] == [True, False], "only single GPUs stand beside Crias"
    assert "/dev/shm" in {mount["mountPath"] for mount in container(eight)["volumeMounts"]}


def test_ranks_meet_at_the_first_pod_under_the_headless_service() -> None:
    of = owner(Distributed.INDEXED_JOB, gpus=8)
    body = made(of, attempt=2)
    (service,) = jobs.services(of, [work_of(of, Stage.STITCH)]).values()
    name, pod = service["metadata"]["name"], body["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == name
    found = variables(body)
    assert found["MASTER_ADDR"] == f"{body['metadata']['name']}-0.{name}"
    assert found["MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])
    assert (found["WORLD_SIZE"], found["PET_NNODES"], found["PET_NPROC_PER_NODE"]) == ("24", "3", "8")
    assert (found["RANK"], found["PET_NODE_RANK"]) == ("2", "2")
    assert body["spec"].items() >= {"completionMode": "Indexed", "completions": 3, "parallelism": 3}.items()
    assert body["spec"]["backoffLimit"] == 0, "one rank that fails ends them all"
    (reference,) = service["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["uid"]) == ("Trenchcoat", of.metadata.uid)


def test_what_the_user_says_of_a_variable_stands() -> None:
    env = [{"name": "MASTER_PORT", "value": "1234"}, {"name": "NCCL_SOCKET_IFNAME", "value": "eth1"}]
    body = made(owner(Distributed.INDEXED_JOB, pods={"stitch": {"env": env}}))
    names = [item["name"] for item in container(body)["env"]]
    assert len(names) == len(set(names))
    assert variables(body)["MASTER_PORT"] == "1234"


def test_names_of_pods_stay_within_what_a_host_may_be_called() -> None:
    of = owner(Distributed.INDEXED_JOB, nodes=1000)
    of = of.model_copy(update={"metadata": of.metadata.model_copy(update={"name": "a" * 32})})
    body = made(of, attempt=99)
    (service,) = jobs.services(of, [work_of(of, Stage.STITCH)])
    assert len(f"{body['metadata']['name']}-999") <= 63
    assert len(service) <= 63


def test_a_single_pod_needs_no_more_than_a_job() -> None:
    of = owner(Distributed.INDEXED_JOB, nodes=1, gpus=8)
    body = made(of)
    assert body["kind"] == "Job" and "completionMode" not in body["spec"]
    assert "MASTER_ADDR" not in variables(body)
    assert container(body)["args"][-2:] == ["--processes", "8"]
    assert jobs.services(of, [work_of(of, Stage.STITCH)]) == {}


@pytest.mark.parametrize("kind", Distributed)
def test_kueue_admits_either_as_a_whole(kind: Distributed) -> None:
    body = made(owner(kind, scheduling={"queueName": "gpus"}))
    assert views.suspended(ChildKind(body["kind"]), body)
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_a_gang_that_waits_is_made_anew_when_the_other_kind_is_asked_for() -> None:
    hashes = {jobs.template_hash(of, work_of(of, Stage.STITCH), DEFAULTS) for of in map(owner, Distributed)}
    assert len(hashes) == 2
    assert jobs.template_hash(owner(None), work_of(owner(None), Stage.STITCH), DEFAULTS) in hashes


def test_what_stages_compute_does_not_hang_on_it() -> None:
    pytorch, indexed = map(owner, Distributed)
    assert specs.spec_config_map(pytorch) == specs.spec_config_map(indexed)
    keys = [
        [item.key for item in Artifacts(of.spec).all(world.crias_of(of.spec))] for of in (pytorch, indexed)
    ]
    assert keys[0] == keys[1]
