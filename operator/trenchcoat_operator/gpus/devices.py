"""Devices by dynamic resource allocation, counted as the extended resource that they stand for."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from trenchcoat_operator.model.capacity import BoundPod, Node
from trenchcoat_operator.model.devices import Claim, Device, DeviceClass, DeviceName, Slice


def counted(
    nodes: Iterable[Node],
    classes: Sequence[DeviceClass],
    slices: Collection[Slice],
    claims: Iterable[Claim],
) -> tuple[tuple[Node, ...], tuple[BoundPod, ...]]:
    """Nodes with their devices among what they have, and what claims hold of them.

    Where a node's device plugin offers the resource, the scheduler goes by that, and so does this. A class
    whose selectors cannot be read here counts for nothing: its pods are then made one by one, and it is the
    scheduler that decides.
    """
    nodes = tuple(nodes)
    if not classes:
        return nodes, ()
    unknown = {item.resource for item in classes if not item.told}
    wanted = [item for item in classes if item.resource not in unknown]
    current = _current(slices)
    plugged = {(node.name, name) for node in nodes for name, count in node.allocatable.items() if count}
    offers: dict[DeviceName, tuple[str, str]] = {}
    for item in current:
        for device in item.devices:
            chosen = next((each for each in wanted if _takes(each, item.driver, device)), None)
            if chosen is not None and (item.node, chosen.resource) not in plugged:
                offers[device.name] = item.node, chosen.resource
    of_nodes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, resource in offers.values():
        of_nodes[name][resource] += 1
    held = Counter(offers[name] for claim in claims for name in claim.devices if name in offers)
    with_devices = tuple(
        replace(node, allocatable={**node.allocatable, **of_nodes[node.name]})
        if node.name in of_nodes
        else node
        for node in nodes
    )
    return with_devices, tuple(BoundPod(name, {resource: count}) for (name, resource), count in held.items())


def _takes(each: DeviceClass, driver: str, device: Device) -> bool:
    return each.drivers <= {driver} and all(
        device.attributes.get(name) == value for name, value in each.attributes
    )


def _current(slices: Collection[Slice]) -> list[Slice]:
    """Slices of the newest generation of each pool."""
    newest: dict[tuple[str, str], int] = {}
    for item in slices:
        pool = item.driver, item.pool
        newest[pool] = max(newest.get(pool, 0), item.generation)
    return [item for item in slices if item.generation == newest[item.driver, item.pool]]
