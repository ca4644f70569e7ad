"""What holds of every decision, whatever is seen: order does not matter, a plan carried out is done with,
any state leads to the end, and no GPU is given twice."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Distributed
from trenchcoat_api.stages import DISTRIBUTED, Stage
from trenchcoat_api.status import State, TrenchcoatStatus
from trenchcoat_operator.children import names, specs
from trenchcoat_operator.model.observed import Child, ChildPhase, Pod, StoreView
from trenchcoat_operator.model.plan import Apply
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import BASE, Cluster, run, settle, succeeded, takes_gpu, trenchcoat


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """A cluster in any state: some artifacts complete, some Jobs at work, ended well or failed."""
    owner = trenchcoat(
        layersPerCria=draw(st.sampled_from([1, 2, 4, 5, 12])),
        scheduling={
            "maxParallelCrias": draw(st.integers(1, 4)),
            "distributed": draw(st.sampled_from(Distributed)),
        },
        evaluate={"enabled": draw(st.booleans())},
        export={"enabled": draw(st.booleans())},
        suspend=draw(st.booleans()),
        attention=draw(st.sampled_from([{}, {}, {"wide": {"share": "0.25"}}])),
        collect={"nodes": 1, "gpusPerNode": draw(st.sampled_from([0, 0, 1]))},
    )
    cluster = Cluster.one(owner, draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)))
    # Most of what can go wrong is in the Crias: the stages before are often done with.
    done = draw(st.sampled_from([0, 0, 1, 3, 3, 3, 3]))
    for number, artifact in enumerate(world.artifacts_of(owner.spec).values()):
        works = {work.key: work for work in graph.build(owner.spec, cluster.manifests).works}
        work = works.get(artifact.key)
        if work is None or any(item.key not in cluster.manifests for item in work.inputs):
            continue  # nothing of it can be there without its inputs
        kinds = ["nothing", "complete", "active", "running", "failed", "succeeded"]
        kind = "complete" if number < done else draw(st.sampled_from(kinds))
        if kind == "complete":
            cluster.manifests[artifact.key] = world.manifest(artifact)
        elif kind != "nothing":
            child = _child(cluster, work, kind)
            cluster.children[child.name] = child
            cluster.owners[child.name] = owner.metadata.name
            cluster.sizes[child.name] = work.pods, work.gpus
            if kind == "succeeded":
                cluster.manifests[artifact.key] = world.manifest(artifact)
            if kind == "running" and takes_gpu(child):
                taken = [node for places in cluster.places.values() for node in places]
                free = [node for node, gpus in enumerate(cluster.gpus) if taken.count(node) < gpus]
                if free:
                    cluster.places[child.name] = [free[0]]
                    running = replace(child.pods[0], node=f"n{free[0]}")
                    cluster.children[child.name] = replace(child, pods=(running,))
                else:
                    cluster.children[child.name] = replace(child, pods=())
    cluster.config_maps[owner.metadata.name].add(specs.spec_name(owner))
    return cluster


def _child(cluster: Cluster, work: graph.Work, kind: str) -> Child:
    phase = {"failed": ChildPhase.FAILED, "succeeded": ChildPhase.SUCCEEDED}.get(kind, ChildPhase.ACTIVE)
    return world.child_of(
        cluster.trenchcoat,
        work,
        phase=phase,
        created_at=world.NOW - timedelta(minutes=1),
        finished_at=None if phase is ChildPhase.ACTIVE else world.NOW - timedelta(seconds=30),
        pods=(Pod(name="p", phase="Running", node="n0"),) if kind == "running" else (),
    )


@given(clusters(), st.randoms(use_true_random=False))
@settings(max_examples=120, deadline=None)
def test_order_of_what_is_seen_does_not_matter(cluster: Cluster, luck: random.Random) -> None:
    seen = cluster.observed()
    assert seen.capacity is not None

    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(luck.sample(items, len(items)))

    other = replace(
        seen,
        children=shuffled(seen.children),
        store=StoreView(None, dict(shuffled(tuple(seen.store.manifests.items()))), {}),
        capacity=replace(
            seen.capacity,
            nodes=shuffled(seen.capacity.nodes),
            bound=shuffled(seen.capacity.bound),
            promised=shuffled(seen.capacity.promised),
        ),
    )
    plan = reconcile(cluster.trenchcoat, seen, world.SETTINGS, cluster.now)
    assert reconcile(cluster.trenchcoat, other, world.SETTINGS, cluster.now) == plan


@given(clusters())
@settings(max_examples=150, deadline=None)
def test_a_plan_carried_out_leaves_nothing_to_do(cluster: Cluster) -> None:
    cluster.carry_out(cluster.plan())
    again = cluster.plan()
    assert again.actions == ()
    cluster.carry_out(again)
    last = cluster.plan()
    assert last.actions == ()
    assert last.status == cluster.trenchcoat.status
    assert last.events == ()


@pytest.mark.slow
@given(clusters())
@settings(max_examples=150, deadline=None)
def test_no_more_crias_than_gpus_and_than_allowed(cluster: Cluster) -> None:
    before = sum(child.stage is Stage.CRIA and child.active for child in cluster.children.values())
    plan = cluster.plan()
    started = [
        action
        for action in plan.actions
        if isinstance(action, Apply)
        and action.manifest["metadata"]["labels"].get("trenchcoat.dev/stage") == "cria"
    ]
    held = sum(takes_gpu(child) and child.active for child in cluster.children.values())
    # Where no node has any, one Job waits as a Pending pod, for an autoscaler to see it.
    free = sum(cluster.gpus) - held if any(cluster.gpus) else 1
    assert len(started) <= max(0, free)
    assert len(started) <= max(0, cluster.trenchcoat.spec.scheduling.max_parallel_crias - before)


@given(clusters())
@settings(max_examples=100, deadline=None)
def test_no_gpu_stays_idle_while_a_cria_waits_for_one(cluster: Cluster) -> None:
    plan = cluster.plan()
    waiting = [cria for cria in plan.status.crias if cria.waiting_reason == "Gpu"]
    if waiting:
        held = sum(takes_gpu(child) and child.active for child in cluster.children.values())
        started = sum(
            isinstance(action, Apply)
            and action.manifest["metadata"]["labels"].get("trenchcoat.dev/stage") in ("cria", "evaluate")
            for action in plan.actions
        )
        assert held + started >= sum(cluster.gpus)


@pytest.mark.slow
@given(clusters(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_state_leads_to_the_end(cluster: Cluster, luck: random.Random) -> None:
    cluster.gpus[0] = max(1, cluster.gpus[0])
    cluster.trenchcoat = cluster.trenchcoat.model_copy(
        update={"spec": cluster.trenchcoat.spec.model_copy(update={"suspend": False})}
    )
    run(cluster, luck)
    assert succeeded(cluster.trenchcoat)
    assert cluster.trenchcoat.status.stage == "Complete"
    assert not cluster.active()


@pytest.mark.slow
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 2), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_from_nothing_every_artifact_is_made_once(luck: random.Random, gpus: list[int]) -> None:
    cluster = Cluster.one(trenchcoat(layersPerCria=2), gpus)
    run(cluster, luck)
    assert succeeded(cluster.trenchcoat)
    assert sorted(cluster.made) == sorted(cluster.artifacts)
    assert cluster.trenchcoat.status.max_crias_running <= sum(gpus)


@pytest.mark.slow
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 2), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_sidecars_keep_no_gpu_and_have_nothing_made_twice(luck: random.Random, gpus: list[int]) -> None:
    """Jobs whose pods go on after their stage would hold their GPUs for ever."""
    cluster = Cluster.one(trenchcoat(layersPerCria=2), gpus)
    run(cluster, luck, sidecars=0.7)
    assert succeeded(cluster.trenchcoat)
    assert sorted(cluster.made) == sorted(cluster.artifacts)
    assert not cluster.active()
    rows = [*cluster.trenchcoat.status.stages, *cluster.trenchcoat.status.crias]
    assert {item.outcome for row in rows for item in row.attempts} == {"Succeeded"}


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_what_kubelets_turn_away_comes_to_an_end(luck: random.Random) -> None:
    cluster = Cluster.one(trenchcoat(layersPerCria=4), [2])
    run(cluster, luck, turned_away=0.5)
    failed = any(row.state is State.FAILED for row in cluster.trenchcoat.status.stages)
    assert succeeded(cluster.trenchcoat) != failed
    assert not cluster.active()
    limit = cluster.trenchcoat.spec.scheduling.max_attempts
    for key in set(cluster.made):
        ends = [child.outcome for child in cluster.children.values() if child.key == key]
        assert ends.count("Evicted") <= limit + 1
        assert ends.count("Failed") == 0


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_failures_beside_sidecars_count_as_others_do(luck: random.Random) -> None:
    cluster = Cluster.one(trenchcoat(layersPerCria=4), [2])
    run(cluster, luck, fail=0.4, sidecars=0.7)
    failed = any(row.state is State.FAILED for row in cluster.trenchcoat.status.stages)
    assert succeeded(cluster.trenchcoat) != failed
    assert not cluster.active()


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_with_failures_it_ends_complete_or_failed(luck: random.Random) -> None:
    cluster = Cluster.one(trenchcoat(layersPerCria=4), [2])
    run(cluster, luck, fail=0.4)
    status = cluster.trenchcoat.status
    failed = any(row.state is State.FAILED for row in status.stages)
    assert succeeded(cluster.trenchcoat) != failed
    for key in set(cluster.made):
        counted = [
            child
            for child in cluster.children.values()
            if child.key == key and child.phase is ChildPhase.FAILED and child.outcome != "Preempted"
        ]
        assert len(counted) <= cluster.trenchcoat.spec.scheduling.max_attempts


@given(st.randoms(use_true_random=False), st.sampled_from(["auto", "always"]))
@settings(max_examples=25, deadline=None)
def test_a_run_goes_on_without_an_adapted_teacher_that_fails(luck: random.Random, wanted: str) -> None:
    owner = trenchcoat(layersPerCria=4, stitch={"nodes": 1}, evaluate={"adaptedTeacher": wanted})
    cluster = Cluster.one(owner, [2])
    run(cluster, luck, fail=0.4)
    status = cluster.trenchcoat.status
    failed = {row.name for row in status.stages if row.state is State.FAILED}
    assert succeeded(cluster.trenchcoat) == (not failed or (wanted == "auto" and failed == {"adapt"}))
    found = world.artifacts_of(owner.spec)
    if "evaluate" not in failed and found["stitch"].key in cluster.manifests:
        # One evaluation was made, and it is that without the adapted teacher exactly where that failed.
        names = {"evaluate", "evaluate-without"} & found.keys()
        made = [name for name in names if found[name].key in cluster.manifests]
        expected = {"auto": ["evaluate-without"], "always": []}[wanted] if "adapt" in failed else ["evaluate"]
        assert made == expected


@given(clusters())
@settings(max_examples=60, deadline=None)
def test_suspended_nothing_runs(cluster: Cluster) -> None:
    cluster.trenchcoat = cluster.trenchcoat.model_copy(
        update={"spec": cluster.trenchcoat.spec.model_copy(update={"suspend": True})}
    )
    cluster.carry_out(cluster.plan())
    assert not cluster.active()


@pytest.mark.parametrize("stage", list(Stage))
def test_names_stay_within_a_pods(stage: Stage) -> None:
    longest = Trenchcoat.from_object(world.merged(BASE, {"metadata": {"name": "a" * 32}}))
    for artifact in world.artifacts_of(longest.spec, 12).values():
        if artifact.stage is stage:
            # The longest suffix is the training operator's; a Job's pods get six characters.
            name = names.child_name("a" * 32, artifact, 99)
            assert (
                len(name + (f"-worker-{most_nodes(stage) - 2}" if stage in DISTRIBUTED else "-abcde")) <= 63
            )


def most_nodes(stage: Stage) -> int:
    """Of a stage that may have several: the first is the master, and workers are counted from 0."""
    field = Stage.STITCH if stage is Stage.ADAPT else stage
    schema = type(getattr(trenchcoat().spec, field.value)).model_json_schema()
    return int(schema["properties"]["nodes"]["maximum"])


@given(
    pending=st.sampled_from([None, 1, 2, 5]),
    crias=st.sampled_from([2, 4, 12]),
    gang=st.integers(0, 2),
    largest=st.integers(2, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_a_pool_that_grows_for_pending_pods_alone_carries_a_run_to_its_end(
    pending: int | None, crias: int, gang: int, largest: int, seed: int
) -> None:
    """Nodes of one GPU come for pods that wait, and go when nothing runs on them."""
    owner = trenchcoat(
        layersPerCria=12 // crias,
        scheduling={} if pending is None else {"pendingJobs": pending},
        stitch={"nodes": max(1, gang), "gpusPerNode": min(1, gang)},
    )
    cluster, luck, most = Cluster.one(owner, [0] * largest), random.Random(seed), 0
    for _ in range(400):
        wait = settle(cluster, "tiny")
        cluster.schedule()
        waiting = [child for child in cluster.children.values() if child.active and not is_placed(child)]
        most = max(most, sum(child.expects_nodes for child in waiting))
        assert all(child.expects_nodes for child in waiting), "who waits was made to wait"
        running = cluster.running()
        for name in running:
            if luck.random() < 0.5:
                cluster.end(name, ChildPhase.SUCCEEDED)
        if not waiting and not running and wait is None:
            break
        cluster.now += timedelta(seconds=luck.choice([2, 30, 120]))
        used = {node for places in cluster.places.values() for node in places}
        if waiting and 0 in cluster.gpus and luck.random() < 0.7:
            cluster.gpus[cluster.gpus.index(0)] = 1
        elif not waiting:
            cluster.gpus = [int(node in used) for node in range(largest)]
    assert succeeded(cluster.tenants["tiny"])
    assert 1 <= most <= max(1, pending or 0)


def is_placed(child: Child) -> bool:
    return bool(child.pods) and not any(pod.waits_for_node for pod in child.pods)


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from([2, 4, 12]))
@settings(max_examples=25, deadline=None)
def test_a_quota_below_what_the_nodes_have_only_slows_a_run_down(
    luck: random.Random, quota: int, crias: int
) -> None:
    cluster = Cluster.one(trenchcoat(layersPerCria=12 // crias), [4, 4])
    cluster.quota = quota
    for _ in range(400):
        known = any(row.waiting_reason == "Refused" for row in cluster.tenants["tiny"].status.crias)
        made = len(cluster.made)
        wait = settle(cluster, "tiny")
        assert not known or len(cluster.made) <= made + 1, "they are made one by one"
        cluster.schedule()
        running = cluster.running()
        for name in running:
            if luck.random() < 0.3:
                cluster.end(name, ChildPhase.SUCCEEDED)
        if not running and wait is None:
            break
        cluster.now += timedelta(seconds=luck.choice([2, 5, 10, 20]))
    tenant = cluster.tenants["tiny"]
    assert succeeded(tenant)
    assert {row.attempt for row in tenant.status.crias} == {1}, "what was refused was no try"
    assert not [row for row in tenant.status.crias if row.last_failure]


@given(st.integers(0, 2**16), st.booleans())
@settings(max_examples=25, deadline=None)
def test_failures_count_though_a_policy_has_jobs_deleted_when_they_end(seed: int, shared: bool) -> None:
    def statuses(*, time_to_live: bool) -> list[TrenchcoatStatus]:
        tenants = {"tiny": trenchcoat()} | ({"two": trenchcoat("two", minutes=5)} if shared else {})
        cluster = Cluster(tenants, [1, 2], time_to_live=time_to_live)
        run(cluster, random.Random(seed), fail=0.5)
        return [tenant.status for tenant in cluster.tenants.values()]

    assert statuses(time_to_live=True) == statuses(time_to_live=False)
