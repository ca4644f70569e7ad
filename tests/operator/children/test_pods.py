"""What users set on the pods of a stage stands in its Job, and nowhere else."""

from typing import Any

import pytest
from trenchcoat_api.stages import Stage
from trenchcoat_operator.children import jobs, pods
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import trenchcoat

DEFAULTS = PodDefaults(image="trainer:1")


def template(stage: Stage, defaults: PodDefaults = DEFAULTS, **settings: Any) -> dict[str, Any]:
    """The pod template of a stage, with settings in `spec.pods`."""
    owner = trenchcoat(layersPerCria=12, pods={stage.value: settings})
    manifests = world.manifests_before_crias(owner.spec)
    work = next(work for work in graph.build(owner.spec, manifests).works if work.stage is stage)
    spec = jobs.build(owner, work, 1, defaults)["spec"]
    found: dict[str, Any] = (
        spec["pytorchReplicaSpecs"]["Master"]["template"] if work.distributed else spec["template"]
    )
    return found


def hashed(**settings: Any) -> str:
    owner = trenchcoat(layersPerCria=12, pods={"cria": settings})
    works = graph.build(owner.spec, world.manifests_before_crias(owner.spec)).works
    return jobs.template_hash(owner, next(work for work in works if work.stage is Stage.CRIA), DEFAULTS)


@pytest.mark.parametrize("stage", [Stage.CRIA, Stage.COLLECT])
def test_names_of_classes_and_accounts(stage: Stage) -> None:
    pod = template(stage, runtimeClassName="nvidia", serviceAccountName="trainer")["spec"]
    assert (pod["runtimeClassName"], pod["serviceAccountName"]) == ("nvidia", "trainer")
    assert pod["automountServiceAccountToken"] is False
    assert not {"runtimeClassName", "serviceAccountName"} & template(stage)["spec"].keys()


def test_further_resources_are_requested_and_limited_beside_the_gpu() -> None:
    wanted = [{"name": "rdma/hca", "quantity": "1"}, {"name": "hugepages-2Mi", "quantity": "1Gi"}]
    (container,) = template(Stage.CRIA, extendedResources=wanted)["spec"]["containers"]
    further = {"rdma/hca": "1", "hugepages-2Mi": "1Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["limits"] == further
    assert container["resources"]["requests"].items() > further.items()


def test_labels_and_annotations_stand_on_pods_and_never_hide_our_own() -> None:
    metadata = template(
        Stage.CRIA, labels={"sidecar.istio.io/inject": "false"}, annotations={"example.com/team": "a b"}
    )["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["labels"]["trenchcoat.dev/stage"] == "cria"
    assert metadata["annotations"]["example.com/team"] == "a b"


@pytest.mark.parametrize(("stage", "container"), [(Stage.CRIA, "stage"), (Stage.COLLECT, "pytorch")])
def test_kubectl_logs_shows_the_stage_though_a_sidecar_stands_before_it(stage: Stage, container: str) -> None:
    annotations = template(stage)["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/default-container"] == container


def test_what_is_changed_while_a_job_waits_makes_it_anew_and_nothing_else_does() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"labels": {"a": "b"}},
        {"annotations": {"a": "b"}},
        {"runtimeClassName": "nvidia"},
        {"serviceAccountName": "trainer"},
        {"extendedResources": [{"name": "rdma/hca", "quantity": "1"}]},
    ]
    assert len({hashed(**item) for item in settings}) == len(settings)


def test_where_the_cluster_chooses_the_user_none_is_asked_for() -> None:
    pod = template(Stage.CRIA, PodDefaults(image="trainer:1", fixed_user=False))["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    names = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    assert names["USER"]
    assert {"runAsUser", "runAsGroup", "fsGroup"} <= template(Stage.CRIA)["spec"]["securityContext"].keys()


def first_pod(defaults: PodDefaults = DEFAULTS, **spec: Any) -> dict[str, Any]:
    """The pod of the first stage."""
    owner = trenchcoat(**spec)
    work = next(work for work in graph.build(owner.spec, {}).works if work.stage is Stage.TOKENIZE)
    pod: dict[str, Any] = jobs.build(owner, work, 1, defaults)["spec"]["template"]["spec"]
    return pod


def variables(defaults: PodDefaults = DEFAULTS, **spec: Any) -> dict[str, dict[str, Any]]:
    """Environment of its container, by name."""
    return {item["name"]: item for item in first_pod(defaults, **spec)["containers"][0]["env"]}


def test_keys_of_the_stores_secret_are_those_that_the_spec_names() -> None:
    keys = {"accessKey": "AWS_ACCESS_KEY_ID", "secretKey": "AWS_SECRET_ACCESS_KEY"}
    asked = variables(store={"credentialsSecretRef": {"name": "bucket", "keys": keys}})
    references = {
        name: item["valueFrom"]["secretKeyRef"] for name, item in asked.items() if "valueFrom" in item
    }
    assert references["AWS_ACCESS_KEY_ID"] == {"name": "bucket", "key": "AWS_ACCESS_KEY_ID"}
    assert references["AWS_SECRET_ACCESS_KEY"] == {"name": "bucket", "key": "AWS_SECRET_ACCESS_KEY"}
    assert references["AWS_SESSION_TOKEN"] == {"name": "bucket", "key": "sessionToken", "optional": True}


def test_a_pod_without_a_key_has_a_token_for_the_store() -> None:
    identity = {"serviceAccountName": "trainer", "audience": "minio.example"}
    store = {"credentialsSecretRef": None, "webIdentity": identity}
    asked = variables(store=store)
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & asked.keys()
    pod = first_pod(store=store)
    assert pod["serviceAccountName"] == "trainer" and pod["automountServiceAccountToken"] is False
    [volume] = [item for item in pod["volumes"] if item["name"] == "store-token"]
    [source] = volume["projected"]["sources"]
    [mount] = [item for item in pod["containers"][0]["volumeMounts"] if item["name"] == "store-token"]
    assert source["serviceAccountToken"]["audience"] == "minio.example"
    file = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert asked["AWS_WEB_IDENTITY_TOKEN_FILE"]["value"] == file
    own = first_pod(store=store, pods={"tokenize": {"serviceAccountName": "other"}})
    assert own["serviceAccountName"] == "other"


def test_all_stages_have_the_variables_of_the_chart_and_the_spec_has_the_last_word() -> None:
    secret = {"valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}}
    defaults = PodDefaults(env=({"name": "HTTPS_PROXY", **secret}, {"name": "NO_PROXY", "value": ".svc"}))
    assert variables(defaults)["HTTPS_PROXY"] == {"name": "HTTPS_PROXY", **secret}
    own = variables(defaults, pods={"tokenize": {"env": [{"name": "NO_PROXY", "value": "*"}]}})
    assert own["NO_PROXY"]["value"] == "*"


def test_local_disk_is_asked_for_where_the_spec_does() -> None:
    def requests(**settings: Any) -> dict[str, str]:
        owner = trenchcoat(layersPerCria=12, pods={"evaluate": settings})
        works = graph.build(owner.spec, world.manifests_before_crias(owner.spec)).works
        work = next(work for work in works if work.stage is Stage.EVALUATE)
        job = jobs.build(owner, work, 1, DEFAULTS)
        asked: dict[str, str] = job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        return asked

    assert "ephemeral-storage" not in requests()
    assert requests(resources={"ephemeralStorage": "1Ti"})["ephemeral-storage"] == "1Ti"


def test_the_token_of_the_exports_destination_goes_to_the_export_alone_by_reference() -> None:
    token = {"name": "hf-write", "key": "token"}
    export = {"destination": "hf://me/student", "tokenSecretRef": token}
    owner = trenchcoat(layersPerCria=12, export=export)
    works = graph.build(owner.spec, world.manifests_before_crias(owner.spec)).works
    named = {}
    for work in works:
        body = jobs.build(owner, work, 1, DEFAULTS)
        spec = body["spec"]
        pod = spec["pytorchReplicaSpecs"]["Master"]["template"] if work.distributed else spec["template"]
        (container,) = pod["spec"]["containers"]
        env = {item["name"]: item for item in container["env"]}
        if "TRENCHCOAT_HF_EXPORT_TOKEN" in env:
            named[work.stage] = env["TRENCHCOAT_HF_EXPORT_TOKEN"]
    assert named == {
        Stage.EXPORT: {"name": "TRENCHCOAT_HF_EXPORT_TOKEN", "valueFrom": {"secretKeyRef": token}}
    }


@pytest.mark.parametrize(
    ("trackers", "expected"),
    [
        ({"mlflow": {}}, {}),
        (
            {"mlflow": {"tokenSecretRef": {"name": "mlflow", "key": "token"}}},
            {"MLFLOW_TRACKING_TOKEN": {"name": "mlflow", "key": "token"}},
        ),
        (
            {"mlflow": {"basicAuthSecretRef": {"name": "mlflow"}}},
            {
                "MLFLOW_TRACKING_USERNAME": {"name": "mlflow", "key": "username"},
                "MLFLOW_TRACKING_PASSWORD": {"name": "mlflow", "key": "password"},
            },
        ),
        (
            {"trackio": {"tokenSecretRef": {"name": "trackio", "key": "write"}}},
            {"TRACKIO_WRITE_TOKEN": {"name": "trackio", "key": "write"}},
        ),
    ],
)
def test_credentials_of_trackers_come_by_reference_alone(
    trackers: dict[str, dict[str, Any]], expected: dict[str, Any]
) -> None:
    tracking = {
        name: {"uri": "https://tracker.example", **credentials} for name, credentials in trackers.items()
    }
    owner = trenchcoat(layersPerCria=12, tracking=tracking)
    env = pods.environment(owner.spec, Stage.CRIA, DEFAULTS)
    told = {item["name"]: item for item in env if item["name"].startswith(("MLFLOW", "TRACKIO"))}
    assert told == {
        name: {"name": name, "valueFrom": {"secretKeyRef": reference}} for name, reference in expected.items()
    }
