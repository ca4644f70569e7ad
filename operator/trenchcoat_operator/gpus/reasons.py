"""Why the pods that wait for GPUs do not get more of them, in words."""

from trenchcoat_operator.gpus.placement import admits
from trenchcoat_operator.gpus.places import free
from trenchcoat_operator.model.capacity import Capacity, Contender


def why_not_more(capacity: Capacity, asking: Contender, kept_for: str, others: int, never: bool) -> str:
    """What stands in the status of a Trenchcoat that gets fewer than it asks for.

    Args:
        capacity: The cluster.
        asking: Who asks.
        kept_for: The gang that free GPUs are kept for, if any.
        others: How many pods of others get GPUs at this look.
        never: Whether not even an empty cluster could take its pods.
    """
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
        each = f"{demand.gpus} {demand.resource}" if demand.gpus > 1 else f"a {demand.resource}"
        if demand.pods == 1:
            wanted = f"room for a pod with {each}"
        else:
            wanted = f"room for {demand.pods} pods with {each}{' each' * (demand.gpus > 1)} at once"
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
    if asking.gang and demand.pods == 1:
        return f"waits for {wanted}: no node has as many free"
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
