"""How the pods of an Indexed Job find one another: a headless Service, and the variables that torchrun sets.

Pod I of Job J is called J-I for as long as the Job is there; under the Service, J-I.SERVICE is its address.
"""

from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children import names
from trenchcoat_operator.children.attempts import Attempt
from trenchcoat_operator.model.plan import Object

PORT = 29500
"""Where the first rank listens; torchrun's own default."""
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def service_name(trenchcoat: Trenchcoat) -> str:
    """Name of the Service: one of a deleted Trenchcoat of the same name is another."""
    return f"{trenchcoat.metadata.name}-ranks-{names.digest(trenchcoat.metadata.uid)}"


def service(trenchcoat: Trenchcoat) -> Object:
    """The headless Service of all gangs of a Trenchcoat.

    Addresses are told before pods are ready: ranks wait for one another while they start.
    """
    name = service_name(trenchcoat)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(trenchcoat, name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {constants.LABEL_RENDEZVOUS: name},
            "ports": [{"name": "tcp-rendezvous", "port": PORT}],  # meshes read the protocol off the name
        },
    }


def joined(attempt: Attempt) -> Object:
    """The pod template of a try, with what lets its pods meet at the first of them."""
    name = service_name(attempt.trenchcoat)
    metadata, spec = attempt.template["metadata"], attempt.template["spec"]
    (stage,) = spec["containers"]
    named = {item["name"] for item in stage["env"]}
    ours = [item for item in _variables(attempt, name) if item["name"] not in named]  # the user's word stands
    return {
        "metadata": {**metadata, "labels": metadata["labels"] | {constants.LABEL_RENDEZVOUS: name}},
        "spec": {**spec, "subdomain": name, "containers": [{**stage, "env": [*ours, *stage["env"]]}]},
    }


def _variables(attempt: Attempt, service: str) -> list[dict[str, Any]]:
    """What torchrun sets; RANK is the pod's, whose processes are each given their own when they start."""
    pods, processes = attempt.work.pods, max(1, attempt.work.gpus)
    index = {"valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}
    return [
        {"name": "MASTER_ADDR", "value": f"{attempt.metadata['name']}-0.{service}"},
        {"name": "MASTER_PORT", "value": str(PORT)},
        {"name": "WORLD_SIZE", "value": str(pods * processes)},
        {"name": "RANK", **index},
        {"name": "PET_NNODES", "value": str(pods)},
        {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
        {"name": "PET_NODE_RANK", **index},
    ]
