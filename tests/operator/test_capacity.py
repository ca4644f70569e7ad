"""Free GPUs, and who gets them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from trenchcoat_operator.model.capacity import (
    BoundPod,
    Capacity,
    Contender,
    Demand,
    Node,
    Taint,
    Toleration,
)
from trenchcoat_operator.reconcile.capacity import admits, free, grant, tolerates

GPU = "nvidia.com/gpu"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def asks(pods: int, name: str = "ml/me", running: int = 0, minutes: int = 0, **demand: object) -> Contender:
    return Contender(name, T0 + timedelta(minutes=minutes), running, replace(Demand(GPU, pods, 1), **demand))


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


def test_all_that_fit_are_granted() -> None:
    assert grant(Capacity(nodes=TWO), asks(2)).jobs == 2
    granted = grant(Capacity(nodes=TWO), asks(6))
    assert (granted.jobs, granted.reason) == (2, f"0 of 2 nodes have a free {GPU}")
    full = Capacity(nodes=TWO, bound=(BoundPod("a", {GPU: 1}), BoundPod("b", {GPU: 1})))
    assert grant(full, asks(1)).reason == f"0 of 2 nodes have a free {GPU}"


def test_without_leave_to_count_the_scheduler_decides() -> None:
    assert grant(Capacity(known=False), asks(5)).jobs == 5


@pytest.mark.parametrize(
    ("nodes", "demand", "reason"),
    [
        ((), {}, f"no ready node has {GPU}"),
        ((Node("a", {}),), {}, f"no ready node has {GPU}"),
        (
            (Node("a", {GPU: 1}, {"gpu": "a100"}),),
            {"node_selector": {"gpu": "h100"}},
            f"none of the 1 node with {GPU} matches the pods' nodeSelector and tolerations",
        ),
    ],
)
def test_why_nothing_is_granted(nodes: tuple[Node, ...], demand: dict[str, object], reason: str) -> None:
    granted = grant(Capacity(nodes=nodes), asks(1, **demand))
    assert (granted.jobs, granted.reason) == (0, reason)


@pytest.mark.parametrize(
    ("toleration", "yes"),
    [
        (Toleration(operator="Exists"), True),
        (Toleration("team", "Exists"), True),
        (Toleration("team", "Equal", "ml"), True),
        (Toleration("team", "Equal", "ml", "NoSchedule"), True),
        (Toleration("team", "Equal", "web"), False),
        (Toleration("team", "Equal", "ml", "NoExecute"), False),
        (Toleration("other", "Exists"), False),
        (Toleration(), False),
    ],
)
def test_tolerations(toleration: Toleration, yes: bool) -> None:
    assert tolerates(toleration, Taint("team", "ml", "NoSchedule")) is yes


def test_a_taint_that_only_prefers_keeps_nobody_off() -> None:
    node = Node("a", {GPU: 1}, taints=(Taint("x", "", "PreferNoSchedule"),))
    assert admits(node, Demand(GPU, 1, 1))
    assert not admits(replace(node, taints=(Taint("x", "", "NoExecute"),)), Demand(GPU, 1, 1))


def test_the_one_with_fewest_running_jobs_comes_first_then_the_oldest() -> None:
    def one_gpu(other: Contender) -> Capacity:
        return Capacity(nodes=TWO[:1], contenders=(other,))

    assert grant(one_gpu(asks(3, "ml/other", running=0)), asks(3, running=1)).jobs == 0
    assert grant(one_gpu(asks(3, "ml/other", running=2)), asks(3, running=1)).jobs == 1
    assert grant(one_gpu(asks(3, "ml/other", minutes=-5)), asks(3)).jobs == 0
    assert grant(one_gpu(asks(3, "ml/other", minutes=5)), asks(3)).jobs == 1
    reason = grant(one_gpu(asks(3, "ml/other")), asks(3, running=1)).reason
    assert reason == f"free {GPU} go first to Trenchcoats with fewer running Jobs"


def test_two_who_ask_at_one_time_get_all_and_no_more() -> None:
    me, other = asks(6), asks(6, "ml/other", minutes=5)
    nodes = (Node("a", {GPU: 3}), Node("b", {GPU: 2}))
    mine = grant(Capacity(nodes=nodes, contenders=(other,)), me).jobs
    others = grant(Capacity(nodes=nodes, contenders=(me,)), other).jobs
    assert (mine, others) == (3, 2)


def test_one_who_cannot_use_a_gpu_leaves_it_to_the_others() -> None:
    picky = asks(3, "ml/picky", minutes=-5, node_selector={"gpu": "h100"})
    assert grant(Capacity(nodes=TWO, contenders=(picky,)), asks(2)).jobs == 2
