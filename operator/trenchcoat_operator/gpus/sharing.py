"""Which waiting Jobs may start on the GPUs that are free now, shared fairly among all Trenchcoats."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush

from trenchcoat_operator.gpus import reasons
from trenchcoat_operator.gpus.places import (
    Free,
    Nodes,
    could_ever_fit,
    count_free,
    place,
    place_all,
    settled_by,
)
from trenchcoat_operator.model.capacity import Capacity, Contender, Demand


@dataclass(frozen=True, slots=True)
class Grant:
    """How many of the asking Trenchcoat's waiting pods may start, and why not more."""

    pods: int
    reason: str = ""
    never: bool = False
    """No node of the cluster could ever take them, not even an empty one."""
    never_from: datetime | None = None
    """When that will be for certain, where a node has just restarted."""
    full: bool = False
    """Whether more would find no room, and it is nobody's turn but the asking one's."""
    nowhere: bool = False
    """Whether not even one of the pods could ever go to any node that is there."""
    due: tuple[str, ...] = ()
    """Others for whom GPUs are free now."""
    place: str = ""
    """Whose turn comes before the asking one's: 2 of 3 where one other does."""


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
    never = not could_ever_fit(capacity.nodes, demand, together=asking.gang)
    others = sum(sharing.granted.values()) - granted
    return Grant(
        granted,
        reasons.why_not_more(capacity, asking, sharing.kept_for, others, never),
        never,
        settled_by(capacity.nodes, demand, now) if never else None,
        full=not others and sharing.kept_for in ("", asking.name),
        nowhere=not could_ever_fit(capacity.nodes, demand, together=False),
        due=due,
        place=place_in_turn(capacity.contenders, asking, now - patience),
    )


def place_in_turn(others: tuple[Contender, ...], asking: Contender, since: datetime) -> str:
    """The place of the one who asks among all who wait for the same resource, such as 2 of 3.

    Args:
        others: Who else waits.
        asking: Who asks.
        since: Gangs that wait since before then go first.
    """

    def turn(contender: Contender) -> tuple[object, ...]:
        began = contender.since if contender.gang else None
        if began is not None and began < since:
            return 0, began, contender.name
        return 1, contender.held, contender.created_at, contender.name

    alike = [other for other in others if other.demand.resource == asking.demand.resource]
    before = sum(turn(other) < turn(asking) for other in alike)
    return f"{before + 1} of {len(alike) + 1}"


class _Sharing:
    """One sharing out of the free GPUs."""

    def __init__(self, capacity: Capacity, contenders: tuple[Contender, ...]) -> None:
        self._capacity = capacity
        self._nodes = Nodes(capacity.nodes)
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
            if place_all(self._nodes, left, gang.demand):
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
            fits = place_all if turn.gang else place
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
            self._free[resource] = count_free(self._capacity, self._nodes, resource)[0]
        return self._free[resource]

    def _give(self, contender: Contender, pods: int) -> None:
        self.granted[contender.name] += pods
        self._held[contender.name] += pods * contender.demand.gpus


def _reservation(capacity: Capacity, nodes: Nodes, left: Free, demand: Demand) -> Mapping[str, int]:
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
