"""Free GPUs, and whose pods find no place on them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from trenchcoat_operator.gpus.places import SETTLING, free, room_by, settled_by, unplaced
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Demand, Node, Placement

GPU = "nvidia.com/gpu"
NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
TWO = (Node("a", {GPU: 1}), Node("b", {GPU: 1}))


def test_bound_pods_and_promised_ones_take_gpus() -> None:
    capacity = Capacity(nodes=(Node("a", {GPU: 8}), Node("b", {GPU: 4})))
    assert free(capacity, GPU) == {"a": 8, "b": 4}
    capacity = replace(capacity, bound=(BoundPod("a", {GPU: 2}), BoundPod("gone", {GPU: 9})))
    assert free(capacity, GPU) == {"a": 6, "b": 4}
    # Promised pods are thought of on the fullest node that fits, and those that fit nowhere take nothing.
    assert free(replace(capacity, promised=(Demand(GPU, 1, 3),)), GPU) == {"a": 6, "b": 1}
    assert free(replace(capacity, promised=(Demand(GPU, 1, 7),)), GPU) == {"a": 6, "b": 4}
    assert free(replace(capacity, promised=(Demand("amd.com/gpu", 1, 1),)), GPU) == {"a": 6, "b": 4}


def test_room_is_made_by_pods_that_were_told_to_end_before() -> None:
    def ending(node: str, seconds: int, grace: int, resource: str = GPU) -> BoundPod:
        told = NOW + timedelta(seconds=seconds)
        return BoundPod(node, {resource: 1}, False, told, told + timedelta(seconds=grace))

    nodes = (*TWO, Node("other", {GPU: 1}, {"pool": "other"}))
    here = Demand(GPU, 1, 1)
    elsewhere = Demand(GPU, 1, 1, Placement({"pool": "other"}))
    bound = (
        BoundPod("a", {GPU: 1}),
        ending("a", -10, 30),
        ending("b", 0, 120),
        ending("a", 1, 600),  # told too late
        ending("b", -10, 600, "amd.com/gpu"),
        ending("gone", -10, 600),
        ending("other", -20, 25),
    )
    assert room_by(nodes, bound, [here], NOW) == NOW + timedelta(seconds=120)
    assert room_by(nodes, bound, [elsewhere], NOW) == NOW + timedelta(seconds=5)
    assert room_by(nodes, bound[:1], [here], NOW) is None
    assert room_by(nodes, bound, [], NOW) is None


def test_a_job_whose_gpus_somebody_else_took_is_named() -> None:
    promised = (Demand(GPU, 1, 1, owner="ml/fits"), Demand(GPU, 2, 1, owner="ml/half"))
    assert unplaced(Capacity(nodes=TWO, promised=promised), GPU) == {"ml/half"}
    assert unplaced(Capacity(nodes=TWO, promised=promised[1:]), GPU) == frozenset()


def test_of_other_resources_that_no_node_has_the_scheduler_speaks() -> None:
    """A Job taken back for them would be made again at once, and again."""
    promised = (Demand(GPU, 1, 1, owner="ml/net"), Demand("rdma/hca", 1, 1, owner="ml/net"))
    assert unplaced(Capacity(nodes=TWO, promised=promised), GPU) == frozenset()


def test_a_node_that_has_just_restarted_may_still_tell_of_its_gpus() -> None:
    """A kubelet that starts knows of none until their device plugin has told it of them."""
    demand, since = Demand(GPU, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)
    restarted, end = Node("a", {GPU: 0}, ready_since=since), since + SETTLING
    settles = partial(settled_by, demand=demand)
    assert settles([restarted], now=since + SETTLING / 2) == end
    assert settles([restarted, replace(restarted, ready_since=since + SETTLING)], now=since) == end + SETTLING
    assert settles([restarted], now=end) is None
    assert settles([replace(restarted, allocatable={GPU: 1})], now=since) is None
    assert settles([Node("unknown", {})], now=since) is None
    elsewhere = replace(demand, placement=Placement(node_selector={"pool": "b"}))
    assert settled_by([restarted], elsewhere, since) is None
