"""Who gets free GPUs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from trenchcoat_operator.gpus import sharing
from trenchcoat_operator.gpus.places import free
from trenchcoat_operator.gpus.sharing import Grant
from trenchcoat_operator.model.capacity import (
    BoundPod,
    Capacity,
    Contender,
    Demand,
    Node,
    Placement,
    Requirement,
)

GPU = "nvidia.com/gpu"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(hours=1)
PATIENCE = timedelta(minutes=5)


def grant(capacity: Capacity, asking: Contender) -> Grant:
    return sharing.grant(capacity, asking, NOW, PATIENCE)


def asks(pods: int, name: str = "ml/me", held: int = 0, minutes: int = 0, **placement: object) -> Contender:
    demand = Demand(GPU, pods, 1, Placement(**placement))
    return Contender(name, T0 + timedelta(minutes=minutes), held, demand)


def gang(
    pods: int, gpus: int, name: str = "ml/gang", waited: timedelta = timedelta(), **more: int
) -> Contender:
    asking = asks(pods, name, **more)
    return replace(asking, demand=replace(asking.demand, gpus=gpus), gang=True, since=NOW - waited)


TWO = (Node("a", {GPU: 1}), Node("b", {GPU: 1}))


def test_all_that_fit_are_granted() -> None:
    assert grant(Capacity(nodes=TWO), asks(2)).pods == 2
    granted = grant(Capacity(nodes=TWO), asks(6))
    assert (granted.pods, granted.reason) == (2, f"0 of 2 nodes have a free {GPU}")
    full = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}), BoundPod("b", {GPU: 1})))
    assert grant(full, asks(1)).reason == f"0 of 2 nodes have a free {GPU}"


def test_without_leave_to_count_the_scheduler_decides() -> None:
    assert grant(Capacity(known=False), asks(5)).pods == 5


@pytest.mark.parametrize(
    ("nodes", "demand", "reason"),
    [
        ((), {}, f"no node has {GPU}"),
        ((Node("a", {}),), {}, f"no node has {GPU}"),
        ((Node("a", {GPU: 1}, usable=False),), {}, f"no ready node has {GPU}"),
        (
            (Node("a", {GPU: 1}, {"gpu": "a100"}),),
            {"node_selector": {"gpu": "h100"}},
            f"none of the 1 node with {GPU} matches the pods' nodeSelector, node affinity and tolerations",
        ),
    ],
)
def test_why_nothing_is_granted(nodes: tuple[Node, ...], demand: dict[str, object], reason: str) -> None:
    granted = grant(Capacity(nodes=nodes), asks(1, **demand))
    assert (granted.pods, granted.reason) == (0, reason)


def test_the_one_with_fewest_running_jobs_comes_first_then_the_oldest() -> None:
    def one_gpu(other: Contender) -> Capacity:
        return Capacity(nodes=TWO[:1], contenders=(other,))

    assert grant(one_gpu(asks(3, "ml/other", held=0)), asks(3, held=1)).pods == 0
    assert grant(one_gpu(asks(3, "ml/other", held=2)), asks(3, held=1)).pods == 1
    assert grant(one_gpu(asks(3, "ml/other", minutes=-5)), asks(3)).pods == 0
    assert grant(one_gpu(asks(3, "ml/other", minutes=5)), asks(3)).pods == 1
    reason = grant(one_gpu(asks(3, "ml/other")), asks(3, held=1)).reason
    assert reason == f"free {GPU} go first to Trenchcoats that hold fewer"


def test_two_who_ask_at_one_time_get_all_and_no_more() -> None:
    me, other = asks(6), asks(6, "ml/other", minutes=5)
    nodes = (Node("a", {GPU: 3}), Node("b", {GPU: 2}))
    mine = grant(Capacity(nodes=nodes, contenders=(other,)), me).pods
    others = grant(Capacity(nodes=nodes, contenders=(me,)), other).pods
    assert (mine, others) == (3, 2)


def test_one_who_cannot_use_a_gpu_leaves_it_to_the_others() -> None:
    picky = asks(3, "ml/picky", minutes=-5, node_selector={"gpu": "h100"})
    assert grant(Capacity(nodes=TWO, contenders=(picky,)), asks(2)).pods == 2


def test_a_node_affinity_that_no_free_node_meets_is_respected() -> None:
    only_b = (Requirement("metadata.name", "In", ("b",), field=True),)
    full = Capacity(nodes=TWO, bound=(BoundPod("b", {GPU: 1}),))
    assert grant(full, asks(2, affinity=(only_b,))).pods == 0
    assert grant(Capacity(nodes=TWO), asks(2, affinity=(only_b,))).pods == 1


def test_what_no_node_could_ever_take_is_told_apart_from_what_waits() -> None:
    full = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}), BoundPod("b", {GPU: 1})))
    assert not grant(full, asks(1)).never
    assert not grant(Capacity(nodes=(Node("a", {GPU: 1}, usable=False),)), asks(1)).never
    assert grant(full, asks(1, node_selector={"gpu": "h100"})).never
    assert grant(Capacity(), asks(1)).never
    wide = grant(full, gang(1, 2))
    assert wide.never
    assert wide.reason.startswith(f"the cluster has no room for a pod with 2 {GPU}: 2 nodes with")
    assert grant(full, gang(3, 1)).never
    assert not grant(full, gang(2, 1)).never


def test_a_gang_starts_as_a_whole_or_not_at_all() -> None:
    assert grant(Capacity(nodes=TWO), gang(2, 1)).pods == 2
    half = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}, ours=True),))
    granted = grant(half, gang(2, 1))
    assert (granted.pods, granted.never) == (0, False)
    assert granted.reason == f"waits for room for 2 pods with a {GPU} at once: 1 of them fit now"
    assert free(half, GPU) == {"a": 0, "b": 1}, "a gang that does not fit takes nothing"


def test_of_two_gangs_that_fit_one_at_a_time_the_older_starts_alone() -> None:
    older, younger = gang(2, 1, "ml/older", minutes=-5), gang(2, 1, "ml/younger")
    assert grant(Capacity(nodes=TWO, contenders=(younger,)), older).pods == 2
    assert grant(Capacity(nodes=TWO, contenders=(older,)), younger).pods == 0


def test_a_gang_that_does_not_fit_leaves_gpus_to_others_for_a_while() -> None:
    half = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}, ours=True),))
    waits = gang(2, 1, waited=PATIENCE / 2)
    assert grant(replace(half, contenders=(waits,)), asks(3, held=9)).pods == 1


def test_then_gpus_are_kept_for_it() -> None:
    half = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}, ours=True),))
    waits = gang(2, 1, waited=PATIENCE * 2)
    granted = grant(replace(half, contenders=(waits,)), asks(3))
    assert granted.pods == 0
    assert granted.reason == (f"free {GPU} are kept for Trenchcoat ml/gang, whose gang has waited longest")
    own = grant(replace(half, contenders=(asks(3),)), waits)
    assert own.pods == 0
    assert (
        own.reason == f"waits for room for 2 pods with a {GPU} at once; {GPU} that come free are kept for it"
    )
    assert grant(Capacity(nodes=TWO, contenders=(asks(3),)), waits).pods == 2


def test_only_what_it_needs_is_kept() -> None:
    nodes = (*TWO, Node("c", {GPU: 4}))
    busy = tuple(BoundPod(name, {GPU: 1}, ours=True) for name in ("a", "c"))
    waits = gang(2, 2, waited=PATIENCE * 2)  # two pods of two GPUs: only node c can take them
    capacity = Capacity(nodes=nodes, bound=busy, contenders=(waits,))
    assert free(capacity, GPU) == {"a": 0, "b": 1, "c": 3}
    assert grant(capacity, asks(4)).pods == 1


def test_of_two_gangs_that_waited_long_gpus_are_kept_for_one_alone() -> None:
    nodes = (Node("a", {GPU: 2}), Node("b", {GPU: 2}))
    busy = (BoundPod("a", {GPU: 1}, ours=True),)
    first, second = gang(2, 2, "ml/first", waited=PATIENCE * 3), gang(1, 2, "ml/second", waited=PATIENCE * 2)
    assert grant(Capacity(nodes=nodes, bound=busy, contenders=(first,)), second).pods == 0
    assert grant(Capacity(nodes=nodes, contenders=(second,)), first).pods == 2


def test_nothing_is_kept_for_a_gang_that_waits_for_pods_of_others() -> None:
    """They may never end, and the GPUs would stay idle for ever."""
    half = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}, ours=False),))
    waits = gang(2, 1, waited=PATIENCE * 2)
    assert grant(replace(half, contenders=(waits,)), asks(3)).pods == 1


def test_the_place_counts_those_whose_turn_comes_before() -> None:
    others = (asks(1, "ml/older", minutes=-5), asks(1, "ml/richer", held=3), gang(2, 1, minutes=5))
    other = asks(9, "ml/else", minutes=-9)
    other = replace(other, demand=replace(other.demand, resource="amd.com/gpu"))
    full = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}), BoundPod("b", {GPU: 1})))
    assert grant(replace(full, contenders=(*others, other)), asks(1)).place == "2 of 4"
    patient = gang(2, 1, "ml/patient", waited=timedelta(hours=1), held=9)
    assert grant(replace(full, contenders=(*others, patient)), asks(1)).place == "3 of 5"
    assert grant(replace(full, contenders=others), patient).place == "1 of 4"
