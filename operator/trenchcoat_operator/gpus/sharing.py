"""Which waiting Jobs may start on the GPUs that are free now, shared fairly among all Trenchcoats."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush

from trenchcoat_operator.gpus.placement import admits
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Contender, Demand, Node, Placement

Free = dict[str, int]
"""Free GPUs by node."""


class _Nodes:
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
    return _free(capacity, _Nodes(capacity.nodes), resource)[0]


def unplaced(capacity: Capacity) -> frozenset[str]:
    """Jobs already made whose pods do not all fit any more: somebody else took the GPUs meanwhile."""
    nodes = _Nodes(capacity.nodes)
    resources = {demand.resource for demand in capacity.promised}
    return frozenset(owner for resource in resources for owner in _free(capacity, nodes, resource)[1])


def _free(capacity: Capacity, nodes: _Nodes, resource: str) -> tuple[Free, set[str]]:
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
            if not _place(nodes, left, demand):
                homeless.add(demand.owner)
    return left, homeless


def _place(nodes: _Nodes, left: Free, demand: Demand) -> bool:
    # The fullest node that fits, so that nodes with many free GPUs stay whole for larger pods.
    fitting = [name for name in nodes.able(demand.placement) if left.get(name, 0) >= demand.gpus]
    if not fitting:
        return False
    chosen = min(fitting, key=lambda name: (left[name], name))
    left[chosen] -= demand.gpus
    return True


def _place_all(nodes: _Nodes, left: Free, demand: Demand) -> bool:
    """Place all pods, or none."""
    tried = dict(left)
    if not all(_place(nodes, tried, demand) for _ in range(demand.pods)):
        return False
    left.update(tried)
    return True


@dataclass(frozen=True, slots=True)
class Grant:
    """How many of the asking Trenchcoat's waiting pods may start, and why not more."""

    pods: int
    reason: str = ""
    never: bool = False
    """No node of the cluster could ever take them, not even an empty one."""
    due: tuple[str, ...] = ()
    """Others for whom GPUs are free now."""


def grant(capacity: Capacity, asking: Contender, now: datetime, patience: timedelta) -> Grant:
    """Share the free GPUs among all who wait; say what falls to the one who asks.

    A turn is one pod, or all pods of a gang. It goes to the Trenchcoat that holds the fewest GPUs, the oldest
    first among equals. Those who cannot use what is free leave it to the others, so that no GPU stays idle,
    though smaller pods wait until a gang of larger ones that has its turn is made. A gang that has waited
    longer than `patience` goes before all others, the longest waiting first, and as long as that one does not
    fit, GPUs that it can use are kept for it. GPUs of pods that are not this operator's are not waited for:
    they may never come free.
    """
    demand = asking.demand
    if not capacity.known:
        return Grant(demand.pods)
    sharing = _Sharing(capacity, (*capacity.contenders, asking))
    sharing.serve_patient_gangs(now - patience)
    sharing.serve_in_turn()
    granted = 0 if sharing.gang_to_come_first(asking, asking) else sharing.granted[asking.name]
    due = tuple(other.name for other in capacity.contenders if sharing.due_after(other, asking))
    if granted == demand.pods:
        return Grant(granted, due=due)
    never = not _could_ever_fit(capacity.nodes, demand, together=asking.gang)
    others = sum(sharing.granted.values()) - granted
    return Grant(granted, _why_not_more(capacity, asking, sharing.kept_for, others, never), never, due)


class _Sharing:
    """One sharing out of the free GPUs."""

    def __init__(self, capacity: Capacity, contenders: tuple[Contender, ...]) -> None:
        self._capacity = capacity
        self._nodes = _Nodes(capacity.nodes)
        self._contenders = contenders
        self._free: dict[str, Free] = {}
        self._held = {contender.name: contender.held for contender in contenders}
        self._waiting = {contender.name: contender.demand.pods for contender in contenders}
        self.granted = dict.fromkeys(self._waiting, 0)
        self.kept_for = ""
        """The gang that GPUs are kept for."""

    def serve_patient_gangs(self, since: datetime) -> None:
        """Let gangs go first that wait since before a moment; keep GPUs for the first that does not fit."""
        waited = [
            (contender.since, contender.name, contender)
            for contender in self._contenders
            if contender.gang and contender.since is not None and contender.since < since
        ]
        for _, name, gang in sorted(waited, key=lambda item: item[:2]):
            left = self._left(gang.demand.resource)
            if _place_all(self._nodes, left, gang.demand):
                self._give(gang, gang.demand.pods)
            elif not self.kept_for:
                places = _reservation(self._capacity, self._nodes, left, gang.demand)
                if places:
                    self.kept_for = name
                    for node, gpus in places.items():
                        left[node] -= min(left[node], gpus)
            self._waiting[name] = 0

    def serve_in_turn(self) -> None:
        """Share what is left."""
        turns = [
            (self._held[contender.name], contender.created_at, contender.name, contender)
            for contender in self._contenders
            if self._waiting[contender.name]
        ]
        heapify(turns)
        while turns:
            *_, turn = heappop(turns)
            left = self._left(turn.demand.resource)
            pods = turn.demand.pods if turn.gang else 1
            fits = _place_all if turn.gang else _place
            if not fits(self._nodes, left, turn.demand):
                continue
            self._give(turn, pods)
            self._waiting[turn.name] -= pods
            if self._waiting[turn.name]:
                heappush(turns, (self._held[turn.name], turn.created_at, turn.name, turn))

    def gang_to_come_first(self, contender: Contender, asking: Contender) -> bool:
        """Whether a gang that has its turn, and is not made even after this look, has larger pods.

        The scheduler may put a smaller pod on any node: made before, it could break the gang's place.
        """
        return any(
            self.granted[other.name] > 0
            and other.demand.resource == contender.demand.resource
            and other.demand.gpus > contender.demand.gpus
            for other in self._contenders
            if other.gang and other.name not in (contender.name, asking.name)
        )

    def due_after(self, contender: Contender, asking: Contender) -> bool:
        """Whether another may start pods as soon as the one who asks has made its own."""
        return self.granted[contender.name] > 0 and not self.gang_to_come_first(contender, asking)

    def _left(self, resource: str) -> Free:
        if resource not in self._free:
            self._free[resource] = _free(self._capacity, self._nodes, resource)[0]
        return self._free[resource]

    def _give(self, contender: Contender, pods: int) -> None:
        self.granted[contender.name] += pods
        self._held[contender.name] += pods * contender.demand.gpus


def _reservation(capacity: Capacity, nodes: _Nodes, left: Free, demand: Demand) -> Mapping[str, int]:
    """GPUs to keep by node, where a gang will fit once Jobs of this operator end; none where it never will.

    The nodes with the most free GPUs come first: what is kept there can only grow, so the gang gets its place
    in the end.
    """
    potential = {
        node.name: node.allocatable.get(demand.resource, 0) for node in capacity.nodes if node.usable
    }
    for pod in capacity.bound:
        if not pod.ours and pod.node in potential:
            potential[pod.node] -= pod.requests.get(demand.resource, 0)
    kept: dict[str, int] = {}
    missing = demand.pods
    for name in sorted(nodes.able(demand.placement), key=lambda name: (-left.get(name, 0), name)):
        pods = min(missing, potential[name] // demand.gpus)
        if pods > 0:
            kept[name] = pods * demand.gpus
            missing -= pods
    return kept if not missing else {}


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
    known = _Nodes(nodes)
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


def _could_ever_fit(nodes: tuple[Node, ...], demand: Demand, *, together: bool) -> bool:
    """Whether the pods would fit if every node were ready and empty: together, or each for itself."""
    able = [node for node in nodes if admits(node, demand.placement, ever=True)]
    places = sum(node.allocatable.get(demand.resource, 0) // demand.gpus for node in able)
    return places >= (demand.pods if together else 1)


def _why_not_more(capacity: Capacity, asking: Contender, kept_for: str, others: int, never: bool) -> str:
    demand = asking.demand
    owners = [node for node in capacity.nodes if node.allocatable.get(demand.resource, 0) > 0]
    if not owners:
        return f"no node has {demand.resource}"
    if not any(node.usable for node in owners):
        return f"no ready node has {demand.resource}"
    admitting = [node for node in owners if admits(node, demand.placement)]
    if not admitting:
        return (
            f"none of the {_nodes(len(owners))} with {demand.resource} matches the pods' nodeSelector, node "
            "affinity and tolerations"
        )
    wanted = f"a free {demand.resource}"
    if asking.gang:
        each = (
            f" with {demand.gpus} {demand.resource} each" if demand.gpus > 1 else f" with a {demand.resource}"
        )
        wanted = f"room for {demand.pods} pods{each} at once"
        if never:
            largest = max(node.allocatable.get(demand.resource, 0) for node in admitting)
            return (
                f"the cluster has no {wanted}: {_nodes(len(admitting))} with at most {largest}; add nodes, "
                "or lower the stage's nodes or gpusPerNode"
            )
    if kept_for == asking.name:
        return f"waits for {wanted}; {demand.resource} that come free are kept for it"
    if kept_for:
        return f"free {demand.resource} are kept for Trenchcoat {kept_for}, whose gang has waited longest"
    if others:
        return f"free {demand.resource} go first to Trenchcoats that hold fewer"
    if asking.gang:
        now_free = sum(
            count // demand.gpus
            for name, count in free(capacity, demand.resource).items()
            if count > 0 and any(node.name == name for node in admitting)
        )
        return f"waits for {wanted}: {now_free} of them fit now"
    return f"0 of {_nodes(len(admitting))} have {wanted}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
