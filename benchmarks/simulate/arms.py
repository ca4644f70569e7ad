"""One run that is simulated, with nodes, quota and tenants of its own: a Trenchcoat, or a rival."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from cluster import REPO, Cluster, secret
from durations import GANG_NODES, GPUS_PER_NODE, POOL

sys.path.insert(0, str(REPO))

from tests.control_plane import node

GPU = "nvidia.com/gpu"
NODE_GPUS = 2
"""Of a node of the Crias' pool."""
KUEUE = "kueue.x-k8s.io/v1beta2"
PLENTY = {"cpu": "100k", "memory": "1Pi", "ephemeral-storage": "10Pi"}
TRENCHCOAT, RIVAL = "trenchcoat", "plain Jobs"
ARGO, ARGO_RESUMES = "Argo", "Argo, programs that resume"
NAMES = {TRENCHCOAT: "ours", RIVAL: "jobs", ARGO: "argo", ARGO_RESUMES: "argo-resumes"}


@dataclass
class Arm:
    """Its pools by the name of the node: which, and how many GPUs."""

    kind: str
    gpus: int
    seed: int | None
    """Of losses and tenants; None for neither."""
    bound: float
    """Seconds of the best schedule, before they are compressed."""
    scale: float
    """Seconds that one second stands for."""
    nodes: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Also its namespace."""
        return f"{NAMES[self.kind]}-{self.gpus}" + ("" if self.seed is None else f"-{self.seed}")

    @property
    def seconds(self) -> float:
        """Seconds of the best schedule, compressed."""
        return self.bound / self.scale

    def set_up(self, made: Cluster) -> None:
        """Make its namespace, nodes and queues."""
        made.plane.namespace(self.name)
        keys = {"metadata": {"name": "minio"}, "stringData": secret()}
        made.plane.core.create_namespaced_secret(self.name, keys)
        for number in range(GANG_NODES):
            self.add_node(made, f"{self.name}-gang-{number}", "gang", GPUS_PER_NODE)
        for number, first in enumerate(range(0, self.gpus, NODE_GPUS)):
            self.add_node(made, f"{self.name}-crias-{number}", "crias", min(NODE_GPUS, self.gpus - first))
        made.apply(*self._queues())

    def add_node(self, made: Cluster, name: str, pool: str, gpus: int) -> None:
        """Make a node of one of its pools."""
        room = {GPU: str(gpus), "cpu": "192", "memory": "2Ti", "pods": "500", "ephemeral-storage": "8Ti"}
        node(made.plane, name, room, labels={POOL: f"{self.name}-{pool}"})
        self.nodes[name] = (pool, gpus)

    def _queues(self) -> list[dict[str, Any]]:
        """Its own quota is guaranteed; tenants borrow what lies idle, and give it back when asked."""
        pools = {"gang": GANG_NODES * GPUS_PER_NODE, "crias": self.gpus}
        flavors = [
            {
                "apiVersion": KUEUE,
                "kind": "ResourceFlavor",
                "metadata": {"name": f"{self.name}-{pool}"},
                "spec": {"nodeLabels": {POOL: f"{self.name}-{pool}"}},
            }
            for pool in pools
        ]
        queues = []
        for queue, share in (("ours", 1), ("tenants", 0)):
            flavored = [
                {
                    "name": f"{self.name}-{pool}",
                    "resources": [
                        {"name": GPU, "nominalQuota": str(share * gpus)},
                        *({"name": name, "nominalQuota": amount} for name, amount in PLENTY.items()),
                    ],
                }
                for pool, gpus in pools.items()
            ]
            spec = {
                "cohortName": self.name,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.name}},
                "preemption": {"reclaimWithinCohort": "Any" if share else "Never"},
                "resourceGroups": [{"coveredResources": [GPU, *PLENTY], "flavors": flavored}],
            }
            name = f"{self.name}-{queue}"
            queues += [
                {"apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec},
                {
                    "apiVersion": KUEUE,
                    "kind": "LocalQueue",
                    "metadata": {"name": queue, "namespace": self.name},
                    "spec": {"clusterQueue": name},
                },
            ]
        return [*flavors, *queues]


def job(arm: Arm, name: str, pool: str, gpus: int, *, queue: str, pods: int = 1, parallel: int = 1) -> Any:
    """A plain Job in one of an arm's queues; its pods have so many GPUs, and end when it is played."""
    limits = {GPU: str(gpus)} if gpus else {}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "metadata": {"name": name, "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {
            "suspend": True,
            "completions": pods,
            "parallelism": parallel,
            "completionMode": "Indexed",
            "backoffLimit": 1000,
            "podFailurePolicy": {"rules": [disrupted]},
            "template": {
                "metadata": {"labels": {"played": name}},
                "spec": {
                    "restartPolicy": "Never",
                    "nodeSelector": {POOL: f"{arm.name}-{pool}"},
                    "containers": [
                        {
                            "name": "work",
                            "image": "none",
                            "resources": {
                                "limits": limits,
                                "requests": {"cpu": "1", "memory": "1Gi"} | limits,
                            },
                        }
                    ],
                },
            },
        },
    }
