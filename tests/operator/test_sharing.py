"""Several Trenchcoats in one cluster and one store: nothing is made twice, no gang starves or deadlocks."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trenchcoat_api.status import Source, WaitingReason
from trenchcoat_operator.model.observed import ChildPhase

from tests.operator.simulation import Cluster, run, settle, succeeded, trenchcoat
from tests.operator.world import SETTINGS


def cluster_of(*tenants, gpus: list[int]) -> Cluster:
    return Cluster({tenant.metadata.name: tenant for tenant in tenants}, gpus)


def rows(cluster: Cluster, name: str):
    return {row.name: row for row in cluster.tenants[name].status.stages}


def test_what_two_need_at_once_one_makes_and_the_other_waits_for() -> None:
    cluster = cluster_of(trenchcoat("one"), trenchcoat("two", minutes=5), gpus=[2])
    settle(cluster, "one")
    settle(cluster, "two")
    waiting = rows(cluster, "two")["tokenize"]
    assert waiting.waiting_reason is WaitingReason.SHARED
    assert waiting.message == "Trenchcoat ml/one makes it; it will be reused"
    run(cluster, random.Random(1))
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    assert set(Counter(cluster.made).values()) == {1}
    assert {row.source for row in rows(cluster, "two").values()} <= {Source.REUSED, Source.COMPUTED}
    assert rows(cluster, "two")["tokenize"].source is Source.REUSED
    assert rows(cluster, "one")["tokenize"].source is Source.COMPUTED


def test_another_store_is_another_artifact() -> None:
    elsewhere = trenchcoat("two", store={"bucket": "elsewhere"})
    cluster = cluster_of(trenchcoat("one"), elsewhere, gpus=[2])
    peers = cluster.observed("two").peers
    settle(cluster, "one")
    peers = cluster.observed("two").peers
    assert peers is not None
    assert not peers.at_work and not peers.users


def test_who_waits_goes_on_when_the_one_who_makes_it_is_deleted() -> None:
    cluster = cluster_of(trenchcoat("one"), trenchcoat("two", minutes=5), gpus=[2])
    settle(cluster, "one")
    settle(cluster, "two")
    cluster.delete("one")
    run(cluster, random.Random(1))
    assert succeeded(cluster.tenants["two"])


@pytest.mark.parametrize(("gpus", "together"), [([1], False), ([2], True), ([1, 1], True)])
def test_layers_are_chosen_beside_collection_where_gpus_are_free(gpus: list[int], together: bool) -> None:
    owner = trenchcoat("one", attention={"wide": {"share": "0.25"}}, collect={"nodes": 1, "gpusPerNode": 1})
    cluster = cluster_of(owner, gpus=gpus)
    settle(cluster, "one")
    cluster.schedule()
    cluster.end(cluster.running()[0], ChildPhase.SUCCEEDED)
    settle(cluster, "one")
    at_work = {"collect", "shard", *(["select"] if together else [])}
    assert {child.stage for child in cluster.children.values() if child.active} == at_work
    assert (rows(cluster, "one")["select"].waiting_reason is WaitingReason.GPU) is not together
    run(cluster, random.Random(1))
    assert succeeded(cluster.tenants["one"])
    assert set(Counter(cluster.made).values()) == {1}
    selection = cluster.tenants["one"].status.selection
    assert selection is not None and selection.layers == [3, 7]


@pytest.mark.slow
@given(
    st.randoms(use_true_random=False),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), min_size=2, max_size=4),
    st.lists(st.integers(2, 4), min_size=3, max_size=4),
)
@settings(max_examples=15, deadline=None, phases=(Phase.generate,))
def test_gangs_and_crias_of_many_all_come_to_their_end(
    luck: random.Random, gangs: list[tuple[int, int]], gpus: list[int]
) -> None:
    """A gang that the scheduler places by halves, beside pods of another size, gives its GPUs back."""
    tenants = [
        trenchcoat(
            f"t{number}",
            minutes=number,
            seed=number,
            data={"tokens": 100_000 + number},
            collect={"nodes": nodes, "gpusPerNode": each},
            stitch={"nodes": nodes, "gpusPerNode": each},
            evaluate={"nodes": nodes, "gpusPerNode": each},
        )
        for number, (nodes, each) in enumerate(gangs)
    ]
    cluster = cluster_of(*tenants, gpus=gpus)
    run(cluster, luck)
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    unlike = len({each for _, each in gangs} | {1}) > 1
    assert unlike or set(Counter(cluster.made).values()) == {1}


def test_a_gang_is_not_starved_by_the_crias_of_others() -> None:
    """Two Trenchcoats with many Crias keep both GPUs busy, one pod ending at a time."""
    busy = [
        trenchcoat(
            f"busy{n}", layersPerCria=1, seed=n, transfer={"epochs": n + 1}, evaluate={"enabled": False}
        )
        for n in range(4)
    ]
    cluster = cluster_of(*busy, gpus=[1, 1])
    for _ in range(4):  # tokenize, collect and shard of the busy ones
        for tenant in busy:
            settle(cluster, tenant.metadata.name)
        cluster.schedule()
        for name in [name for name in cluster.running() if "cria" not in name]:
            cluster.end(name, ChildPhase.SUCCEEDED)
    late = trenchcoat("late", minutes=60, data={"tokens": 200_000}, collect={"nodes": 2, "gpusPerNode": 1})
    cluster.tenants["late"] = late
    waited_since = None
    for _ in range(60):
        for name in sorted(cluster.tenants):
            settle(cluster, name)
        cluster.schedule()
        row = rows(cluster, "late").get("collect")
        if row is not None and row.waiting_reason is WaitingReason.GPU and waited_since is None:
            waited_since = cluster.now
        if any(name.startswith("late-collect") for name in cluster.running()):
            break
        running = [name for name in cluster.running() if "cria" in name]
        ends = [name for name in cluster.running() if "cria" not in name] + running[:1]
        for name in ends:
            cluster.end(name, ChildPhase.SUCCEEDED)
        cluster.now += timedelta(seconds=30)
    else:
        raise AssertionError("the gang was starved")
    assert waited_since is not None
    patience = timedelta(seconds=SETTINGS.gang_patience_seconds)
    assert patience < cluster.now - waited_since <= patience + timedelta(minutes=2)
    left = sum(
        cria.state != "Succeeded"
        for tenant in busy
        for cria in cluster.tenants[tenant.metadata.name].status.crias
    )
    assert left > 10, "others had work all the time"


def test_a_half_placed_gang_gives_its_gpus_back() -> None:
    """Somebody else takes a GPU between our count and the scheduler."""
    cluster = cluster_of(
        trenchcoat("one", collect={"nodes": 2, "gpusPerNode": 1}, evaluate={"enabled": False}), gpus=[1, 1]
    )
    settle(cluster, "one")
    cluster.schedule()
    (tokenize,) = [name for name in cluster.running() if "tokenize" in name]
    cluster.end(tokenize, ChildPhase.SUCCEEDED)
    settle(cluster, "one")
    (collect,) = [name for name in cluster.active() if "collect" in name]
    cluster.foreign[1] = 1
    cluster.places[collect] = [0]
    cluster.leave_pending(collect)
    cluster.now += timedelta(seconds=25)
    plan = cluster.plan("one")
    assert [action.name for action in plan.actions if type(action).__name__ == "Delete"] == [collect]
    cluster.carry_out(plan, "one")
    settle(cluster, "one")
    assert rows(cluster, "one")["collect"].waiting_reason is WaitingReason.GPU
    cluster.foreign.clear()
    run(cluster, random.Random(1))
    assert succeeded(cluster.tenants["one"])
    assert rows(cluster, "one")["collect"].attempt == 2
