"""Where things lie: folders, addresses and names, all derived from the cluster's name and slot."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
HACK = REPO / "hack" / "cluster"
SLOTS = range(32)


def cache() -> Path:
    """What is worth keeping between runs: built components, images, the nodes' unpacked images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"


def state_root() -> Path:
    """What belongs to the clusters that run now; one folder each."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "trenchcoat"


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster: 10.(200+slot).0.0/16, split by third byte."""

    slot: int

    def _at(self, third: int, fourth: int) -> str:
        return f"10.{200 + self.slot}.{third}.{fourth}"

    @property
    def everything(self) -> str:
        """The one range that the host routes into the cluster."""
        return self._at(0, 0) + "/16"

    @property
    def api(self) -> str:
        """The bridge in the outer namespace: API server, and the nodes' gateway."""
        return self._at(0, 1)

    @property
    def host(self) -> str:
        """The host's own end."""
        return self._at(0, 254)

    def node(self, number: int) -> str:
        """Address of a node; nodes count from 1."""
        return self._at(0, 10 + number)

    def pods(self, number: int) -> str:
        """Pod range of a node."""
        return self._at(16 + number, 0) + "/24"

    @property
    def all_pods(self) -> str:
        """Range that holds every node's pods."""
        return self._at(0, 0) + "/17"

    @property
    def services(self) -> str:
        """Range of service addresses."""
        return self._at(128, 0) + "/17"

    @property
    def first_service(self) -> str:
        """The address of the service `kubernetes`, which the API server takes by itself."""
        return self._at(128, 1)

    @property
    def dns(self) -> str:
        """Service address of CoreDNS."""
        return self._at(128, 10)


def free_slot(routes: Iterable[str]) -> int:
    """The first slot whose range overlaps none of the host's routes."""
    taken = [ipaddress.ip_network(route, strict=False) for route in routes]
    for slot in SLOTS:
        wanted = ipaddress.ip_network(Network(slot).everything)
        if not any(wanted.overlaps(other) for other in taken):
            return slot
    raise ValueError("no free address range: every 10.200-231.0.0/16 is taken")


@dataclass(frozen=True)
class Node:
    """One node of a cluster and its folders."""

    cluster: Layout
    number: int

    @property
    def name(self) -> str:
        """Name in Kubernetes."""
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        """Its InternalIP."""
        return self.cluster.network.node(self.number)

    @property
    def state(self) -> Path:
        """Kubelet's root, pod logs, configuration: gone with the cluster."""
        return self.cluster.state / "nodes" / self.name

    @property
    def containerd_root(self) -> Path:
        """Images: kept in the cache between runs, so that a warm start imports nothing."""
        return cache() / "nodes" / self.cluster.name / self.name

    @property
    def socket(self) -> Path:
        """Containerd's socket, reachable from the host because it lies on the disk."""
        return self.state / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup that holds all its pods."""
        return f"{self.cluster.cgroup}/{self.name}"

    @property
    def marker(self) -> str:
        """The word in the command line that tells the node's process."""
        return f"trenchcoat-node={self.cluster.name}/{self.name}"


@dataclass(frozen=True)
class Layout:
    """One cluster."""

    name: str
    slot: int = 0
    node_count: int = 2

    @property
    def network(self) -> Network:
        """Its addresses."""
        return Network(self.slot)

    @property
    def state(self) -> Path:
        """Its folder, made by `up` and removed by `down`."""
        return state_root() / self.name

    @property
    def kubeconfig(self) -> Path:
        """Credentials of its administrator."""
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """One log a component."""
        return self.state / "logs"

    @property
    def cgroup(self) -> str:
        """Parent of its nodes' cgroups."""
        return f"trenchcoat-{self.name}"

    @property
    def marker(self) -> str:
        """The word in the command line that tells the outer process."""
        return f"trenchcoat-cluster={self.name}"

    @property
    def link(self) -> str:
        """The host's end of the veth pair, told from the name alone; at most 15 characters."""
        return f"tcoat-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def nodes(self) -> list[Node]:
        """Its nodes, in order."""
        return [Node(self, number) for number in range(1, self.node_count + 1)]

    def node(self, name: str) -> Node:
        """The node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ValueError(f"no node {name}; there are {', '.join(node.name for node in self.nodes)}")
