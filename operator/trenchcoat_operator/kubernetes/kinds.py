"""Kinds of objects, where they stand in the API, and choices among the objects of a kind."""

from dataclasses import dataclass
from typing import Any

from trenchcoat_api import constants

Object = dict[str, Any]
"""A Kubernetes object as it stands in YAML."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Where a kind of objects stands in the API."""

    group_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "") -> str:
        """URL path of all objects, those of a namespace, or one."""
        root = "/api/" if "/" not in self.group_version else "/apis/"
        parts = [root + self.group_version]
        if namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name:
            parts.append(name)
        return "/".join(parts)


TRENCHCOATS = Kind(constants.API_VERSION, constants.PLURAL)
JOBS = Kind("batch/v1", "jobs")
PYTORCH_JOBS = Kind("kubeflow.org/v1", "pytorchjobs")
PODS = Kind("v1", "pods")
NODES = Kind("v1", "nodes")
SECRETS = Kind("v1", "secrets")
SERVICE_ACCOUNTS = Kind("v1", "serviceaccounts")
CONFIG_MAPS = Kind("v1", "configmaps")
SERVICES = Kind("v1", "services")
EVENTS = Kind("v1", "events")
TOKEN_REVIEWS = Kind("authentication.k8s.io/v1", "tokenreviews")
SUBJECT_ACCESS_REVIEWS = Kind("authorization.k8s.io/v1", "subjectaccessreviews")
WORKLOADS = Kind("kueue.x-k8s.io/v1beta2", "workloads")
DEVICE_CLASSES = Kind("resource.k8s.io/v1", "deviceclasses")
RESOURCE_SLICES = Kind("resource.k8s.io/v1", "resourceslices")
RESOURCE_CLAIMS = Kind("resource.k8s.io/v1", "resourceclaims")

KINDS = {"Job": JOBS, "PyTorchJob": PYTORCH_JOBS, "ConfigMap": CONFIG_MAPS, "Service": SERVICES}


@dataclass(frozen=True, slots=True)
class Selection:
    """Objects of one kind."""

    kind: Kind
    namespace: str = ""
    """Where; everywhere if empty."""
    labels: str = ""
    """Label selector."""
    fields: str = ""
    """Field selector."""

    @property
    def query(self) -> dict[str, str]:
        """Query parameters that select them."""
        query = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in query.items() if value}
