"""The viewer in its pod, reached as docs/viewer.md says: everybody sees what they may get."""

import json
import sys
from collections.abc import Iterator

import pytest
import urllib3
from demo.environment import REPO, Environment
from demo.install import CHART, RELEASE, RELEASE_NAMESPACE, image_values

from tests.cluster.conftest import NAME as CLUSTER
from tests.cluster.objects import Body, apply, delete, example
from tests.cluster.security import process_facts
from tests.waiting import until

sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import images, lifecycle

VIEWER = f"{RELEASE}-viewer"
PORT = 8090
SHOWN = "seen-by-one"
SOON = 240
"""Seconds; what somebody was found to have no right to is not asked again for a while."""
READER, STRANGER = "viewer-reader", "viewer-stranger"


def upgrade(environment: Environment, *words: str) -> None:
    """Change the release's values, and wait until what they ask for is ready."""
    command = ("helm", "upgrade", RELEASE, str(CHART), "--namespace", RELEASE_NAMESPACE)
    environment.command(*command, "--reset-then-reuse-values", "--wait", "--timeout", "10m", *words)


@pytest.fixture(scope="module")
def viewer(environment: Environment) -> Iterator[Environment]:
    """The release with its viewer on, in a namespace that takes only restricted pods."""
    images.build(["viewer"])
    for node in lifecycle.running(CLUSTER).nodes:
        images.load(["viewer"], node)
    try:
        image = image_values("viewer.image", images.tag("viewer"))
        upgrade(environment, "--set", "viewer.enabled=true", *image)
        yield environment
    finally:
        upgrade(environment, "--set", "viewer.enabled=false")


@pytest.fixture(scope="module")
def run(viewer: Environment) -> Iterator[Body]:
    """A Trenchcoat that waits for its user, and two ServiceAccounts, one of which may get it."""
    role = {"apiGroups": ["trenchcoat.dev"], "resources": ["trenchcoats"], "verbs": ["get"]}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": READER}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": READER}
    subject = {"kind": "ServiceAccount", "name": READER, "namespace": viewer.namespace}
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        for name in (READER, STRANGER)
    ]
    rights = [
        {**kind, "kind": "Role", "rules": [role]},
        {**kind, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
    ]
    for body in (*accounts, *rights):
        apply(viewer, body)
    apply(viewer, example(SHOWN, suspend=True))
    try:
        yield viewer.get("trenchcoat", SHOWN)
    finally:
        delete(viewer, SHOWN)
        viewer.kubectl("delete", f"role/{READER}", f"rolebinding/{READER}", "--ignore-not-found")
        viewer.kubectl("delete", "serviceaccount", READER, STRANGER, "--ignore-not-found")


def bearer(environment: Environment, account: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {environment.kubectl('create', 'token', account).strip()}"}


def test_each_sees_what_they_may_get_and_others_see_nothing(viewer: Environment, run: Body):
    reader, stranger = bearer(viewer, READER), bearer(viewer, STRANGER)
    path = f"/runs/{viewer.namespace}/{SHOWN}"
    pool = urllib3.PoolManager(retries=False, timeout=120)  # the first page has its libraries loaded
    with viewer.forwarded(RELEASE_NAMESPACE, VIEWER, PORT) as address:

        def get(where: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
            answer = pool.request("GET", f"http://{address}{where}", headers=headers, redirect=False)
            return answer.status, answer.data.decode()

        # The viewer may not have heard of the run yet, nor the API server of the rights to it.
        until(lambda: get(path, reader)[0] == 200, SOON, "the reader sees it")
        assert f"<h1>{SHOWN}</h1>" in get(path, reader)[1]
        until(lambda: path.lstrip("/") in get("/", reader)[1], SOON, "it is listed")
        status, listed = get("/", stranger)
        assert status == 200 and "There is no Trenchcoat that" in listed
        assert SHOWN not in listed and "runs/" not in listed
        assert get(path, stranger)[0] == 404
        for where in ("/", path):
            status, form = get(where)
            assert status == 401 and SHOWN not in form


def test_its_pod_has_no_rights_on_its_machine_and_no_credentials_of_the_store(viewer: Environment):
    selector = "app.kubernetes.io/component=viewer"
    found = viewer.command("kubectl", "-n", RELEASE_NAMESPACE, "get", "pods", "-l", selector, "-o", "json")
    (pod,) = json.loads(found)["items"]
    facts = process_facts(viewer, RELEASE_NAMESPACE, pod["metadata"]["name"])
    assert set(facts["Uid"].split()) == {"65532"}
    assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Root"]) == ("1", "2", "read-only")
    who = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:{VIEWER}"
    for words in (("get", "secret/minio"), ("list", "pods"), ("patch", "trenchcoats"), ("list", "nodes")):
        asked = ("kubectl", "auth", "can-i", *words, "-n", viewer.namespace, who)
        assert viewer.command(*asked, check=False).strip() == "no", words
