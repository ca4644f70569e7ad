"""The chart: what helm makes of it. (Installing it is tested in tests/cluster.)"""

from typing import Any

import pytest
import yaml
from trenchcoat_api import crd

from tests.charts.helm import CHART, TOP, of_kind, render, template


def test_definitions_are_those_of_the_models() -> None:
    for file in (TOP / "crds" / "trenchcoat.dev_trenchcoats.yaml", CHART / "files" / "crd.yaml"):
        assert file.read_text() == crd.render(), f"{file} is not current: run hack/generate-crds"


def test_the_definition_is_kept_and_can_be_left_out() -> None:
    (definition,) = of_kind(template(), "CustomResourceDefinition")
    assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    generated = yaml.safe_load(crd.render())
    assert definition["spec"] == generated["spec"]
    (definition,) = of_kind(template("crds.keep=false"), "CustomResourceDefinition")
    assert "annotations" not in definition["metadata"]
    assert not of_kind(template("crds.enabled=false"), "CustomResourceDefinition")


@pytest.mark.parametrize(
    "setting",
    [
        "imgae.tag=1",
        "image.pullpolicy=Always",
        "image.pullPolicy=Sometimes",
        "crds.enable=true",
        "operator.workers=0",
        "trainer.memory=lots",
        "watchNamespaces={Not_A_Name}",
        "image.digest=latest",
        "serviceMonitor.intervall=1m",
        "serviceMonitor.interval=often",
        "dashboard.label.a=b",
        "networkPolicy.egress[0].too[0].ipBlock.cidr=10.0.0.0/8",
        "networkPolicy.metricsFrom[0].podSelector.matchlabels.a=b",
        "resources.request.cpu=1",
        "resources.requests.memory=lots",
        "tolerations[0].operater=Exists",
        "affinity.nodeAffinty.x=y",
        "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topology=zone",
        "env[0].val=1",
        "volumes[0].configmap.name=ca",
        "livenessProbe.periodSeconds=0",
        "podAnnotations.a=1",
    ],
)
def test_misspelt_values_are_refused(setting: str) -> None:
    made = render("--set", setting)
    assert made.returncode != 0
    assert "schema" in made.stderr


def rules(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [rule for role in of_kind(documents, kind) for rule in role["rules"]]


@pytest.mark.parametrize("settings", [(), ("watchNamespaces={a,b}",), ("countGpus=false",)])
def test_no_right_to_everything(settings: tuple[str, ...]) -> None:
    documents = template(*settings)
    for rule in rules(documents, "ClusterRole") + rules(documents, "Role"):
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]


def test_secrets_can_only_be_read_one_by_one() -> None:
    verbs = [rule["verbs"] for rule in rules(template(), "ClusterRole") if "secrets" in rule["resources"]]
    assert verbs == [["get"]]


def test_secrets_that_can_be_read_can_be_named() -> None:
    named = [
        rule["resourceNames"]
        for rule in rules(template("rbac.secretNames={minio,hf}"), "ClusterRole")
        if "secrets" in rule["resources"]
    ]
    assert named == [["minio", "hf"]]


def test_tokens_of_service_accounts_are_asked_for_by_name_alone() -> None:
    def tokens(*values: str) -> list[dict[str, Any]]:
        made = rules(template(*values), "ClusterRole")
        return [rule for rule in made if "serviceaccounts/token" in rule["resources"]]

    assert tokens() == []
    [rule] = tokens("rbac.serviceAccountNames={trainer}")
    assert (rule["verbs"], rule["resourceNames"]) == (["create"], ["trainer"])


def test_of_kueue_only_workloads_are_read() -> None:
    kueue = [rule for rule in rules(template(), "ClusterRole") if "kueue.x-k8s.io" in rule["apiGroups"]]
    assert kueue == [{"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]}]


def test_with_namespaces_rights_are_theirs_alone() -> None:
    documents = template("watchNamespaces={a,b}", "rbac.aggregate=false")
    assert [role["metadata"]["namespace"] for role in of_kind(documents, "Role")] == ["a", "b"]
    counting = rules(documents, "ClusterRole")
    assert {verb for rule in counting for verb in rule["verbs"]} == {"list", "watch"}
    assert {resource for rule in counting for resource in rule["resources"]} == {
        *("nodes", "pods", "deviceclasses", "resourceslices", "resourceclaims"),
    }
    assert not of_kind(
        template("watchNamespaces={a}", "countGpus=false", "rbac.aggregate=false"), "ClusterRole"
    )


def operator_container(*settings: str) -> dict[str, Any]:
    (deployment,) = of_kind(template(*settings), "Deployment")
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def test_there_is_one_operator_at_a_time() -> None:
    (deployment,) = of_kind(template(), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_pod_is_restricted() -> None:
    (deployment,) = of_kind(template(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod["containers"][0]["securityContext"]
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_on_openshift_the_cluster_chooses_the_user() -> None:
    (deployment,) = of_kind(template("fixedUserIds=false"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    assert environment["TRENCHCOAT_TRAINER_FIXED_USER"] == "false"
    assert environment["USER"], "kopf asks for the name of a user whom /etc/passwd does not know"


def test_images() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert operator_container()["image"] == f"trenchcoat-operator:{version}"
    set_to = ("image.registry=reg.example/team", "image.tag=abc", "trainerImage.repository=localhost/t")
    container = operator_container(*set_to)
    assert container["image"] == "reg.example/team/trenchcoat-operator:abc"
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["TRENCHCOAT_TRAINER_IMAGE"] == f"localhost/t:{version}"
    digest = "sha256:" + "0" * 64
    assert operator_container(f"image.digest={digest}")["image"] == f"trenchcoat-operator@{digest}"
    both = operator_container(f"image.digest={digest}", "image.tag=abc")
    assert both["image"] == f"trenchcoat-operator:abc@{digest}"


def test_metrics_are_served_where_the_service_looks() -> None:
    (service,) = of_kind(template("metrics.port=9100"), "Service")
    (port,) = service["spec"]["ports"]
    ports = {item["name"]: item["containerPort"] for item in operator_container("metrics.port=9100")["ports"]}
    assert port["port"] == ports[port["targetPort"]] == 9100
    environment = {item["name"]: item["value"] for item in operator_container("metrics.port=9100")["env"]}
    assert environment["TRENCHCOAT_METRICS_PORT"] == "9100"


def test_metrics_can_be_switched_off() -> None:
    assert not of_kind(template("metrics.enabled=false"), "Service")
    container = operator_container("metrics.enabled=false")
    assert [item["name"] for item in container["ports"]] == ["health"]
    assert {"name": "TRENCHCOAT_METRICS_PORT", "value": "0"} in container["env"]


def test_every_variable_is_one_that_the_operator_reads() -> None:
    source = (TOP / "operator" / "trenchcoat_operator" / "settings.py").read_text()
    for item in operator_container()["env"]:
        if item["name"].startswith("TRENCHCOAT_"):
            assert f'"{item["name"]}"' in source


def test_the_viewer_is_there_where_it_is_asked_for_and_may_do_little() -> None:
    assert not [item for item in template() if item["metadata"]["name"].endswith("-viewer")]
    made = [item for item in template("viewer.enabled=true") if item["metadata"]["name"].endswith("-viewer")]
    kinds = {"ServiceAccount", "Deployment", "Service", "ClusterRole", "ClusterRoleBinding"}
    assert {item["kind"] for item in made} == kinds
    (role,) = of_kind(made, "ClusterRole")
    allowed = {(item, verb) for rule in role["rules"] for item in rule["resources"] for verb in rule["verbs"]}
    assert allowed == {
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
        ("trenchcoats", "list"),
        ("trenchcoats", "watch"),
    }
    (service,), (deployment,) = of_kind(made, "Service"), of_kind(made, "Deployment")
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "viewer"
    (operator,) = [
        item for item in of_kind(template("viewer.enabled=true"), "Deployment") if item not in made
    ]
    assert not operator["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_the_viewer_of_some_namespaces_lists_in_these_alone() -> None:
    made = template("viewer.enabled=true", "watchNamespaces={a,b}", "viewer.tlsSecretName=own")
    made = [item for item in made if item["metadata"]["name"].endswith("-viewer")]
    assert {item["metadata"]["namespace"] for item in of_kind(made, "Role")} == {"a", "b"}
    (role,) = of_kind(made, "ClusterRole")
    assert all("trenchcoats" not in rule["resources"] for rule in role["rules"])
    (deployment,) = of_kind(made, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"][1] == {"name": "tls", "secret": {"secretName": "own"}}
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
