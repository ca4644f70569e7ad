"""Which waiting Jobs may start on the GPUs that are free now."""

from dataclasses import dataclass

from trenchcoat_operator.model.capacity import Capacity, Contender, Demand, Node, Taint, Toleration

_KEEPS_OFF = ("NoSchedule", "NoExecute")


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Whether a toleration answers a taint, by the scheduler's rule."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    if toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or toleration.value == taint.value


def admits(node: Node, demand: Demand) -> bool:
    """Whether a node's labels and taints let the demand's pods on it.

    Affinity is left to the scheduler: a pod that it keeps off every free node waits as Pending.
    """
    if any(node.labels.get(key) != value for key, value in demand.node_selector.items()):
        return False
    return all(
        taint.effect not in _KEEPS_OFF
        or any(tolerates(toleration, taint) for toleration in demand.tolerations)
        for taint in node.taints
    )


def free(capacity: Capacity, resource: str) -> dict[str, int]:
    """GPUs of each node that neither a bound pod nor a Job already made will use."""
    left = {node.name: node.allocatable.get(resource, 0) for node in capacity.nodes}
    for pod in capacity.bound:
        if pod.node in left:
            left[pod.node] -= pod.requests.get(resource, 0)
    for demand in capacity.promised:
        if demand.resource == resource:
            for _ in range(demand.pods):
                _place(capacity.nodes, left, demand)
    return left


def _place(nodes: tuple[Node, ...], left: dict[str, int], demand: Demand) -> bool:
    # The fullest node that fits, so that nodes with many free GPUs stay whole for larger pods.
    fitting = [node.name for node in nodes if left.get(node.name, 0) >= demand.gpus and admits(node, demand)]
    if not fitting:
        return False
    chosen = min(fitting, key=lambda name: (left[name], name))
    left[chosen] -= demand.gpus
    return True


@dataclass(frozen=True, slots=True)
class Grant:
    """How many of the asking Trenchcoat's waiting Jobs may start, and why not more."""

    jobs: int
    reason: str = ""


def grant(capacity: Capacity, asking: Contender) -> Grant:
    """Share the free GPUs among all who wait; say what falls to the one who asks.

    The GPUs go one by one to the Trenchcoat with the fewest running Jobs, the oldest first among equals.
    Those who cannot use a GPU, by their node selector say, leave it to the others: none stays idle.
    """
    demand = asking.demand
    if not capacity.known:
        return Grant(demand.pods)
    left_by_resource: dict[str, dict[str, int]] = {}
    contenders = (*capacity.contenders, asking)
    running = {contender.name: contender.running for contender in contenders}
    waiting = {contender.name: contender.demand.pods for contender in contenders}
    granted = given_to_others = 0
    while any(waiting.values()):
        turn = min(
            (contender for contender in contenders if waiting[contender.name]),
            key=lambda contender: (running[contender.name], contender.created_at, contender.name),
        )
        resource = turn.demand.resource
        left = left_by_resource.setdefault(resource, free(capacity, resource))
        if not _place(capacity.nodes, left, turn.demand):
            waiting[turn.name] = 0
            continue
        waiting[turn.name] -= 1
        running[turn.name] += 1
        if turn is asking:
            granted += 1
        else:
            given_to_others += 1
    if granted == demand.pods:
        return Grant(granted)
    return Grant(granted, _why_not_more(capacity, demand, given_to_others))


def _why_not_more(capacity: Capacity, demand: Demand, given_to_others: int) -> str:
    owners = [node for node in capacity.nodes if node.allocatable.get(demand.resource, 0) > 0]
    if not owners:
        return f"no ready node has {demand.resource}"
    admitting = [node for node in owners if admits(node, demand)]
    if not admitting:
        return (
            f"none of the {_nodes(len(owners))} with {demand.resource} matches the pods' nodeSelector and "
            "tolerations"
        )
    if given_to_others:
        return f"free {demand.resource} go first to Trenchcoats with fewer running Jobs"
    return f"0 of {_nodes(len(admitting))} have a free {demand.resource}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
