"""The cluster's GPUs and those who want them, as seen in one look."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint that keeps pods off a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Toleration:
    """A pod's leave to run on a tainted node."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is ready and takes pods."""

    name: str
    allocatable: Mapping[str, int]
    """Extended resources, such as nvidia.com/gpu."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()


@dataclass(frozen=True, slots=True)
class BoundPod:
    """A pod that holds a node's resources: bound and not over."""

    node: str
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """Pods that are to be placed: how many, how large, and where they may run."""

    resource: str
    pods: int
    gpus: int
    """Of each pod."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """A Trenchcoat whose Jobs wait for GPUs."""

    name: str
    """namespace/name."""
    created_at: datetime
    running: int
    """Its GPU Jobs that are made and not over."""
    demand: Demand
    """Its one-GPU Jobs that wait."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """One look at all nodes, all bound pods and all Trenchcoats."""

    known: bool = True
    """False where the operator may not list nodes and pods: then the scheduler alone decides."""
    nodes: tuple[Node, ...] = ()
    bound: tuple[BoundPod, ...] = ()
    promised: tuple[Demand, ...] = ()
    """Pods of this operator's Jobs that are not bound yet."""
    contenders: tuple[Contender, ...] = ()
    """The other Trenchcoats."""
