"""Which GPUs are free, and on which nodes pods would find their place."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from trenchcoat_operator.gpus.placement import admits
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Demand, Node, Placement

UNSCHEDULABLE_GRACE = timedelta(seconds=20)
"""The scheduler may find a node for a pod within this time before anybody is told."""

SETTLING = timedelta(minutes=3)
"""A node that has just started may have its GPUs after so long: their device plugin is a pod, too."""

Free = dict[str, int]
"""Free GPUs by node."""


class Nodes:
    """Nodes, and which of them let pods on: asked for each pod that is placed, found out once."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = tuple(nodes)
        self._able: list[tuple[Placement, tuple[str, ...]]] = []

    def able(self, placement: Placement) -> tuple[str, ...]:
        """Names of those that let pods on."""
        for known, names in self._able:
            if known is placement or known == placement:
                return names
        names = tuple(node.name for node in self._nodes if admits(node, placement))
        self._able.append((placement, names))
        return names


def free(capacity: Capacity, resource: str) -> Free:
    """GPUs of each node that neither a bound pod nor a Job already made will use."""
    return count_free(capacity, Nodes(capacity.nodes), resource)[0]


def unplaced(capacity: Capacity, resource: str) -> frozenset[str]:
    """Jobs already made whose pods do not all find GPUs any more: somebody else took these meanwhile.

    Of what else pods ask for, network adapters say, the scheduler speaks.
    """
    return frozenset(count_free(capacity, Nodes(capacity.nodes), resource)[1])


def count_free(capacity: Capacity, nodes: Nodes, resource: str) -> tuple[Free, set[str]]:
    """Free GPUs, and the Jobs already made whose pods do not all fit."""
    left = {node.name: node.allocatable.get(resource, 0) for node in capacity.nodes if node.usable}
    for pod in capacity.bound:
        if pod.node in left:
            left[pod.node] -= pod.requests.get(resource, 0)
    homeless = set()
    # The largest first: a Job made now is among these at the next look, and must not take, for the count, the
    # place that a larger pod of an earlier Job was counted on.
    wanted = [demand for demand in capacity.promised if demand.resource == resource]
    for demand in sorted(wanted, key=lambda demand: -demand.gpus):
        for _ in range(demand.pods):
            if not place(nodes, left, demand):
                homeless.add(demand.owner)
    return left, homeless


def place(nodes: Nodes, left: Free, demand: Demand) -> bool:
    """Place one pod; returns whether there was room for it."""
    # The fullest node that fits, so that nodes with many free GPUs stay whole for larger pods.
    fitting = [name for name in nodes.able(demand.placement) if left.get(name, 0) >= demand.gpus]
    if not fitting:
        return False
    chosen = min(fitting, key=lambda name: (left[name], name))
    left[chosen] -= demand.gpus
    return True


def place_all(nodes: Nodes, left: Free, demand: Demand) -> bool:
    """Place all pods, or none."""
    tried = dict(left)
    if not all(place(nodes, tried, demand) for _ in range(demand.pods)):
        return False
    left.update(tried)
    return True


def room_by(
    nodes: Iterable[Node], bound: Iterable[BoundPod], demands: Sequence[Demand], told_by: datetime
) -> datetime | None:
    """When pods should be gone that were told to end, on nodes that some of the demands may go to.

    Args:
        nodes: All nodes.
        bound: What pods hold of them.
        demands: What waits for a node.
        told_by: Only pods count that were told before, so that on a busy cluster nobody waits for ever.
    """
    known = Nodes(nodes)
    ends = [
        pod.gone_by
        for pod in bound
        if pod.gone_by is not None
        and pod.ends_since is not None
        and pod.ends_since <= told_by
        and any(
            pod.requests.get(demand.resource) and pod.node in known.able(demand.placement)
            for demand in demands
        )
    ]
    return max(ends, default=None)


def could_ever_fit(nodes: tuple[Node, ...], demand: Demand, *, together: bool) -> bool:
    """Whether the pods would fit if every node were ready and empty: together, or each for itself."""
    able = [node for node in nodes if admits(node, demand.placement, ever=True)]
    places = sum(node.allocatable.get(demand.resource, 0) // demand.gpus for node in able)
    return places >= (demand.pods if together else 1)


def settled_by(nodes: Iterable[Node], demand: Demand, now: datetime) -> datetime | None:
    """Until when nodes that could take the pods may still tell of GPUs, which they lose while they restart.

    None where no such node has become ready, or ceased to be, a moment ago.
    """
    ends = [
        node.ready_since + SETTLING
        for node in nodes
        if node.ready_since is not None
        and not node.allocatable.get(demand.resource)
        and admits(node, demand.placement, ever=True)
    ]
    return max((end for end in ends if end > now), default=None)
