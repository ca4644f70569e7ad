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
class Requirement:
    """One expression of a node affinity, on a label or on the field metadata.name."""

    key: str
    operator: str
    """In, NotIn, Exists, DoesNotExist, Gt or Lt."""
    values: tuple[str, ...] = ()
    field: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where pods may run: what their spec says of nodes, as far as it is a must."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[tuple[Requirement, ...], ...] | None = None
    """Terms of the required node affinity: a node must meet all requirements of one; None is no affinity."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node."""

    name: str
    allocatable: Mapping[str, int]
    """Extended resources, such as nvidia.com/gpu."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    usable: bool = True
    """Whether it is ready and takes pods now."""
    ready_since: datetime | None = None
    """When it became ready, or ceased to be."""


@dataclass(frozen=True, slots=True)
class BoundPod:
    """A pod that holds a node's resources: bound and not over."""

    node: str
    requests: Mapping[str, int]
    ours: bool = False
    """Whether it belongs to a Job of this operator, which ends some day."""
    ends_since: datetime | None = None
    """When it was told to end, if it was."""
    gone_by: datetime | None = None
    """When it should have ended then."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Pods that are to be placed: how many, how large, and where they may run."""

    resource: str
    pods: int
    gpus: int
    """Of each pod."""
    placement: Placement = field(default_factory=Placement)
    owner: str = ""
    """Of promised pods: namespace/name of their Job or PyTorchJob."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A Trenchcoat whose Jobs wait for GPUs."""

    name: str
    """namespace/name."""
    created_at: datetime
    held: int
    """GPUs of its Jobs that are made and not over."""
    demand: Demand
    """What waits: pods that start one by one, or a gang."""
    gang: bool = False
    """Whether its pods start together or not at all."""
    since: datetime | None = None
    """Since when it waits; none for a moment ago."""


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
