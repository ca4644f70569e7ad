"""Looking at a cluster as somebody who is after its credentials would."""

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from demo.environment import BUCKET, Environment
from demo.inputs import client

Body = dict[str, Any]

LARGE = 1_000_000  # bytes; no text of ours is
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


def enforce_restricted(environment: Environment, namespace: str) -> None:
    """Make a namespace, if need be, that takes only pods of the restricted Pod Security Standard."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": RESTRICTED}}
    apply = ("kubectl", "apply", "--server-side", "--field-manager=tests", "-f", "-")
    environment.command(*apply, stdin=json.dumps(body))


def restricted_pod(image: str, *command: str, gpus: int = 0) -> Body:
    """Spec of a pod that such a namespace takes."""
    container: Body = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    if gpus:
        container["resources"]["limits"] = {"nvidia.com/gpu": gpus}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def process_facts(environment: Environment, namespace: str, pod: str) -> dict[str, str]:
    """What the kernel says of a container's first process, and whether its root can be written to."""
    script = "cat /proc/1/status; touch /here 2>/dev/null && echo 'Root: writable' || echo 'Root: read-only'"
    script += "; test -e /var/run/secrets && echo 'Token: there' || echo 'Token: none'"
    said = environment.command("kubectl", "-n", namespace, "exec", pod, "--", "sh", "-c", script)
    pairs = (line.partition(":") for line in said.splitlines())
    return {key: " ".join(value.split()) for key, _, value in pairs}


def texts(environment: Environment) -> Iterator[tuple[str, str]]:
    """Everything that a user of the cluster may read, Secrets apart: what it is, and its text."""
    kinds = environment.command("kubectl", "api-resources", "--verbs=list", "-o", "name").split()
    kinds.remove("secrets")
    listed = environment.command("kubectl", "get", ",".join(kinds), "-A", "-o", "json")
    for item in json.loads(listed)["items"]:
        namespace, name = item["metadata"].get("namespace", ""), item["metadata"]["name"]
        yield f"{item['kind']} {namespace}/{name}", json.dumps(item)
        if item["kind"] == "Pod" and item["apiVersion"] == "v1":
            words = ("kubectl", "-n", namespace, "logs", name, "--all-containers")
            yield f"log of {namespace}/{name}", environment.command(*words, check=False)
            statuses = item["status"].get("containerStatuses", [])
            if any(status["restartCount"] for status in statuses):
                former = environment.command(*words, "--previous", check=False)
                yield f"former log of {namespace}/{name}", former


def stored_texts(environment: Environment, prefix: str) -> Iterator[tuple[str, str]]:
    """What the store holds below a prefix, tensors apart."""
    with environment.store_address() as address:
        store = client(environment, address)
        for item in store.list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True):
            if item.size < LARGE:
                answer = store.get_object(bucket_name=BUCKET, object_name=item.object_name)
                try:
                    yield f"store: {item.object_name}", answer.read().decode("latin-1")
                finally:
                    answer.close()
                    answer.release_conn()


def forms(value: str) -> set[str]:
    """A value as it may be written down."""
    return {value, base64.b64encode(value.encode()).decode(), quote(value, safe=""), json.dumps(value)[1:-1]}


def holders(found: list[tuple[str, str]], value: str) -> list[str]:
    """Which of the texts hold a value in any form."""
    wanted = forms(value)
    return [what for what, text in found if any(form in text for form in wanted)]
