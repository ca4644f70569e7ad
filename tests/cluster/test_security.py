"""What the operator may do: all that it needs where it is asked to serve, and nothing else anywhere."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from demo.environment import Environment
from demo.install import RELEASE, RELEASE_NAMESPACE, install_operator
from demo.watch import condition

from tests.cluster.objects import example
from tests.cluster.security import enforce_restricted, process_facts

SCOPED = "scoped"
SERVED = "team-scoped"

IN_SERVED_NAMESPACES = {
    ("trenchcoat.dev", "trenchcoats"): {"get", "list", "watch", "patch"},
    ("trenchcoat.dev", "trenchcoats/status"): {"patch"},
    ("trenchcoat.dev", "trenchcoats/finalizers"): {"update"},
    ("batch", "jobs"): {"list", "watch", "create", "patch", "delete"},
    ("kubeflow.org", "pytorchjobs"): {"list", "watch", "create", "patch", "delete"},
    ("", "configmaps"): {"list", "watch", "create", "delete"},
    ("", "services"): {"list", "watch", "create", "delete"},
    ("", "pods"): {"list", "watch", "delete"},
    ("", "pods/status"): {"patch"},
    ("", "secrets"): {"get"},
    ("", "events"): {"create", "list"},
    ("kueue.x-k8s.io", "workloads"): {"list"},
}

EVERYBODYS = ("authorization.k8s.io", "authentication.k8s.io")
"""Asking what one may do, and who one is."""


def rights(environment: Environment, release: str, namespace: str) -> dict[tuple[str, str], set[str]]:
    """What the API server lets a release's operator do in a namespace: group and resource to verbs."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = environment.command(
        "kubectl",
        "create",
        "--raw=/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        "-f",
        "-",
        f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:{release}",
        stdin=json.dumps(review),
    )
    result: dict[tuple[str, str], set[str]] = {}
    for rule in json.loads(answer)["status"]["resourceRules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                if group not in EVERYBODYS:
                    result.setdefault((group, resource), set()).update(rule["verbs"])
    return result


def may(environment: Environment, release: str, *words: str) -> bool:
    who = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:{release}"
    return environment.command("kubectl", "auth", "can-i", *words, who, check=False).strip() == "yes"


def test_the_operator_has_no_rights_on_its_machine(environment: Environment):
    name = environment.command(
        "kubectl",
        "-n",
        RELEASE_NAMESPACE,
        "get",
        "pod",
        "-l",
        f"app.kubernetes.io/instance={RELEASE}",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    )
    facts = process_facts(environment, RELEASE_NAMESPACE, name)
    assert set(facts["Uid"].split()) == {"65532"}
    assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Root"]) == ("1", "2", "read-only")


def test_for_all_namespaces_it_may_do_what_it_needs_and_no_more(environment: Environment):
    wanted = dict(IN_SERVED_NAMESPACES)
    wanted["", "nodes"] = {"list", "watch"}
    for resource in ("deviceclasses", "resourceslices", "resourceclaims"):
        wanted["resource.k8s.io", resource] = {"list", "watch"}
    for namespace in (environment.namespace, "kube-system"):
        assert rights(environment, RELEASE, namespace) == wanted


@pytest.fixture(scope="module")
def scoped(environment: Environment) -> Iterator[Environment]:
    """A second operator that serves one namespace, while the first is away."""
    enforce_restricted(environment, SERVED)
    where = ("kubectl", "-n", RELEASE_NAMESPACE, "scale", f"deployment/{RELEASE}")
    environment.command(*where, "--replicas=0")
    gone = ("wait", "--for=delete", "--timeout=120s", "pods", "-l", f"app.kubernetes.io/instance={RELEASE}")
    environment.command("kubectl", "-n", RELEASE_NAMESPACE, *gone)
    try:
        settings = (f"watchNamespaces={{{SERVED}}}", "crds.enabled=false", "rbac.secretNames={minio}")
        settings += ("countGpus=false", f"fullnameOverride={SCOPED}")
        install_operator(environment, release=SCOPED, settings=settings)
        yield environment
    finally:
        environment.command("helm", "uninstall", SCOPED, "--namespace", RELEASE_NAMESPACE, "--wait")
        environment.command(*where, "--replicas=1")
        environment.command("kubectl", "delete", "namespace", SERVED, "--wait=false")


def test_for_one_namespace_it_has_no_rights_elsewhere(scoped: Environment):
    assert rights(scoped, SCOPED, SERVED) == IN_SERVED_NAMESPACES
    assert rights(scoped, SCOPED, scoped.namespace) == {}
    assert may(scoped, SCOPED, "get", "secret/minio", "-n", SERVED)
    for words in (
        ("get", "secret/hf", "-n", SERVED),
        ("get", "secret/minio", "-n", scoped.namespace),
        ("list", "secrets", "-n", SERVED),
        ("create", "pods", "-n", SERVED),
        ("create", "pods/exec", "-n", SERVED),
        ("list", "nodes"),
        ("list", "pods", "-n", scoped.namespace),
    ):
        assert not may(scoped, SCOPED, *words), words


def in_served(environment: Environment, *words: str, stdin: str | None = None) -> str:
    return environment.command("kubectl", "-n", SERVED, *words, stdin=stdin)


def get(environment: Environment, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(in_served(environment, "get", *words, "-o", "json"))
    return found


def test_for_one_namespace_it_works(scoped: Environment, store: Environment):
    secret = scoped.get("secret", "minio")
    copy = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "minio"}, "data": secret["data"]}
    in_served(scoped, "apply", "-f", "-", stdin=json.dumps(copy))
    in_served(scoped, "apply", "-f", "-", stdin=json.dumps(example("served", data__tokens=16384)))
    in_served(scoped, "wait", "--for=condition=Accepted", "trenchcoat/served", "--timeout=300s")
    rows = {row["name"]: row for row in get(scoped, "trenchcoat", "served")["status"]["stages"]}
    assert rows["tokenize"]["state"] == "Succeeded"
    log = scoped.command("kubectl", "-n", RELEASE_NAMESPACE, "logs", f"deployment/{SCOPED}", "--tail=-1")
    assert "made Job team-scoped/served-tokenize" in log
    assert "orbidden" not in log


def test_a_secret_that_it_may_not_read_is_told(scoped: Environment):
    model = {"source": "hf://somebody/gated", "tokenSecretRef": {"name": "hf", "key": "token"}}
    other = example("secretive", model=model)
    in_served(scoped, "apply", "-f", "-", stdin=json.dumps(other))
    in_served(scoped, "wait", "--for=condition=Stalled", "trenchcoat/secretive", "--timeout=120s")
    said = condition(get(scoped, "trenchcoat", "secretive"), "Stalled")
    assert said["reason"] == "SecretForbidden"
    assert "spec.model.tokenSecretRef" in said["message"] and "rbac.secretNames" in said["message"]
