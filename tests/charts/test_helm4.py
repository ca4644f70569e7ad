"""Helm 3, and Helm 4, which has the API server merge: no key twice, no field that others have as well."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.charts.helm import CHART, helm, render
from tests.charts.test_golden import GOLDEN, SETS
from tests.components import built_or_skip
from tests.control_plane import ControlPlane, control_plane
from tests.waiting import until

GROUPS = "--set=serviceMonitor.enabled=false,prometheusRule.enabled=false,extraObjects=null"
"""Kinds of others that a bare API server does not serve."""


class Strict(yaml.SafeLoader):
    """YAML in which a key stands once in its map."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{sorted(twice)} twice:\n{node.start_mark}"
        return super().construct_mapping(node, deep=deep)


Strict.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lambda loader, node: loader.construct_mapping(node, True)
)


def helm4() -> str:
    return built_or_skip("helm4", "helm")


@pytest.fixture(params=["helm", "helm4"])
def program(request: pytest.FixtureRequest) -> str:
    return helm() if request.param == "helm" else helm4()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as made:
        made.namespace("ops")
        made.namespace("monitoring")
        yield made


OVERLAPPING = (
    "commonLabels.app\\.kubernetes\\.io/version=mine",
    "commonLabels.a=1",
    "podLabels.a=2",
    "serviceAccount.labels.a=3",
    "dashboard.labels.a=4",
    "serviceMonitor.labels.app\\.kubernetes\\.io/managed-by=me",
    "prometheusRule.labels.a=5",
)


def in_words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set-string", setting)]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("more", [(), OVERLAPPING], ids=["as it is", "overlapping"])
def test_no_key_stands_twice(name: str, more: tuple[str, ...]) -> None:
    made = render("--values", str(GOLDEN / f"{name}.values.yaml"), *in_words(*more))
    assert made.returncode == 0, made.stderr
    documents = [document for document in yaml.load_all(made.stdout, Strict) if document]
    assert len(documents) > 3
    if more:
        deployments = {item["metadata"]["name"]: item for item in documents if item["kind"] == "Deployment"}
        operator, *_ = deployments  # the viewer's stands behind it where it is on, and has no podLabels
        for item in deployments.values():
            assert item["metadata"]["labels"]["a"] == "1"
            assert item["metadata"]["labels"]["app.kubernetes.io/version"] == "mine"
        assert deployments[operator]["spec"]["template"]["metadata"]["labels"]["a"] == "2"


def test_a_key_that_stands_twice_is_found() -> None:
    with pytest.raises(AssertionError, match=r"\['a'\] twice"):
        yaml.load("x: {a: 1, a: 2}", Strict)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("commonLabels.app\\.kubernetes\\.io/name=mine", "label app.kubernetes.io/name"),
        ("podLabels.app\\.kubernetes\\.io/instance=mine", "label app.kubernetes.io/instance"),
        ("env[0].name=TRENCHCOAT_WORKERS,env[0].value=3", "env: name TRENCHCOAT_WORKERS is there already"),
        ("env[0].name=A,env[0].value=3,env[1].name=A,env[1].value=4", "env: name A is there already"),
        ("volumes[0].name=tmp", "volumes: name tmp is there already"),
        ("volumeMounts[0].name=a,volumeMounts[0].mountPath=/tmp", "volumeMounts: mountPath /tmp is there"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused(setting: str, told: str) -> None:
    made = render("--set-string", setting)
    assert made.returncode != 0 and told in made.stderr


@pytest.mark.parametrize("name", SETS)
def test_both_make_the_same_objects(name: str) -> None:
    words = ("template", "tc", CHART, "--namespace", "ops", "--kube-version", "1.34.0")
    values = ("--values", GOLDEN / f"{name}.values.yaml")
    made = [
        subprocess.run([program, *words, *values], capture_output=True, text=True, check=True).stdout
        for program in (helm(), helm4())
    ]
    sets = [
        {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text) if item}
        for text in made
    ]
    assert sets[0] == sets[1]


def owners(managed: list[dict[str, Any]]) -> dict[tuple[str, ...], set[str]]:
    """Who has each field of an object, leaves alone."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(node: dict[str, Any], path: tuple[str, ...], who: str) -> None:
        below = {key: value for key, value in node.items() if key != "."}
        if not below:
            found.setdefault(path, set()).add(who)
        for key, value in below.items():
            walk(value, (*path, key), who)

    for entry in managed:
        walk(entry["fieldsV1"], (), entry["manager"])
    return found


def act(program: str, plane: ControlPlane, *words: str | Path) -> None:
    words = (*words, "--namespace", "ops", "--kubeconfig", plane.kubeconfig)
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def managed_fields(plane: ControlPlane, manager: str) -> dict[str, dict[tuple[str, ...], set[str]]]:
    """Fields of the chart's objects that `manager` has, by object."""
    objects = [
        deployment(plane),
        plane.core.read_namespaced_service_account("operator", "ops"),
        plane.core.read_namespaced_service("linearizer-metrics", "ops"),
        client.RbacAuthorizationV1Api(plane.api).read_cluster_role("linearizer"),
        client.RbacAuthorizationV1Api(plane.api).read_cluster_role("linearizer-view"),
        plane.definitions.read_custom_resource_definition("trenchcoats.trenchcoat.dev"),
    ]
    found = {}
    for item in objects:
        body = plane.api.sanitize_for_serialization(item)
        fields = owners(body["metadata"]["managedFields"])
        found[type(item).__name__ + " " + item.metadata.name] = {
            path: who for path, who in fields.items() if manager in who
        }
    return found


def test_installed_by_either_and_upgraded_by_helm_4(plane: ControlPlane, program: str) -> None:
    values = ("--values", GOLDEN / "everything.values.yaml", GROUPS)
    act(program, plane, "install", "tc", CHART, *values)
    try:
        until(lambda: observed(plane), 120, "the Deployment's controller has written to it")
        for name, fields in managed_fields(plane, "helm").items():
            assert fields, name
            shared = {path: who for path, who in fields.items() if who != {"helm"}}
            assert not shared, name
        # Without --force-conflicts: an upgrade that took a field from anyone would be refused.
        act(helm4(), plane, "upgrade", "tc", CHART, *values, "--set=operator.workers=3", "--server-side=true")
        environment = {
            item.name: item.value for item in deployment(plane).spec.template.spec.containers[0].env
        }
        assert environment["TRENCHCOAT_WORKERS"] == "3"
    finally:
        act(helm4(), plane, "uninstall", "tc", "--wait")


def deployment(plane: ControlPlane) -> Any:
    return client.AppsV1Api(plane.api).read_namespaced_deployment("linearizer", "ops")


def observed(plane: ControlPlane) -> bool:
    return bool(deployment(plane).status.observed_generation)
