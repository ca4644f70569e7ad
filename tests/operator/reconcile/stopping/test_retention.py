"""spec.retention: what is deleted when, and that nothing runs again because of it."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trenchcoat_api.artifacts import DeletionPhase
from trenchcoat_api.status import Source
from trenchcoat_operator.model.observed import ChildPhase, Observed, Problem, StoreView
from trenchcoat_operator.model.plan import Purge, SetFinalizer
from trenchcoat_operator.reconcile.assessment.assess import MANIFEST_GRACE
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.reconcile.stopping.farewell import PATIENCE

from tests.operator import world
from tests.operator.simulation import Cluster, run, settle, succeeded, trenchcoat

THIN = {"retention": "DeleteIntermediate"}


def stored(cluster: Cluster) -> set[str]:
    """Stages whose artifacts have objects."""
    return {cluster.artifacts[key].stage.value for key in cluster.objects if key in cluster.artifacts}


def made_again(cluster: Cluster) -> set[str]:
    return {
        cluster.artifacts[key].stage.value
        for key, times in Counter(cluster.made).items()
        if times > 1 and key in cluster.artifacts
    }


def finished(**spec) -> Cluster:
    cluster = Cluster.one(trenchcoat(**spec), [2])
    run(cluster, random.Random(1))
    assert succeeded(cluster.trenchcoat)
    return cluster


def test_kept_by_default() -> None:
    assert stored(finished()) == {"tokenize", "collect", "shard", "cria", "stitch", "evaluate", "export"}


def test_intermediates_go_and_nothing_runs_again() -> None:
    cluster = finished(**THIN)
    assert stored(cluster) == {"tokenize", "cria", "stitch", "evaluate", "export"}
    row = next(row for row in cluster.trenchcoat.status.stages if row.name == "collect")
    assert row.message.startswith("deleted at ")
    assert (row.source, row.bytes, row.uri) == (Source.COMPUTED, 0, "")
    run(cluster, random.Random(2))
    assert set(Counter(cluster.made).values()) == {1}
    # Also without what the status remembers.
    cluster.trenchcoat = trenchcoat(**THIN)
    run(cluster, random.Random(3))
    assert succeeded(cluster.trenchcoat)
    assert set(Counter(cluster.made).values()) == {1}


def test_what_was_deleted_is_no_failure_of_those_who_made_it() -> None:
    cluster = finished(**THIN, scheduling={"maxAttempts": 1})
    ended = max(child.finished_at for child in cluster.children.values() if child.finished_at is not None)
    assert cluster.now - ended > MANIFEST_GRACE, "or else it may still be in time"
    status = cluster.trenchcoat.status
    assert {item.outcome for row in (*status.stages, *status.crias) for item in row.attempts} == {"Succeeded"}
    assert not [row.name for row in status.stages if row.last_failure]
    assert not [child.name for child in cluster.children.values() if child.outcome]
    # Nor does it count when it is made again.
    cluster.change("tiny", transfer={"learningRate": "1e-3"})
    run(cluster, random.Random(2))
    assert succeeded(cluster.trenchcoat)
    assert made_again(cluster) == {"collect", "shard"}


def test_what_is_made_again_may_fail_as_often_as_at_first() -> None:
    cluster = Cluster.one(trenchcoat(**THIN, scheduling={"maxAttempts": 2}), [2])
    key = world.artifacts_of(cluster.trenchcoat.spec)["collect"].key

    def fail_once() -> None:
        for _ in range(20):
            settle(cluster, "tiny")
            cluster.schedule()
            for name in cluster.running():
                failed = cluster.children[name].key == key
                cluster.end(name, ChildPhase.FAILED if failed else ChildPhase.SUCCEEDED, 1 if failed else 0)
                if failed:
                    return
            cluster.now += timedelta(seconds=30)
        raise AssertionError("it was never made")

    fail_once()
    run(cluster, random.Random(1))
    cluster.change("tiny", transfer={"learningRate": "1e-3"})
    fail_once()
    run(cluster, random.Random(1))
    assert succeeded(cluster.trenchcoat)
    assert cluster.made.count(key) == 4


def test_activations_go_as_soon_as_all_crias_are_trained() -> None:
    cluster = Cluster.one(trenchcoat(**THIN), [4])
    for _ in range(20):
        settle(cluster, "tiny")
        cluster.schedule()
        trained = [name for name in cluster.running() if "stitch" not in name]
        if not trained:
            break
        for name in trained:
            cluster.end(name, ChildPhase.SUCCEEDED)
    assert [name.split("-")[1] for name in cluster.active()] == ["stitch"]
    assert stored(cluster) == {"tokenize", "shard", "cria"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"stitch": {"learningRate": "1e-3"}}, {"shard"}),
        ({"transfer": {"learningRate": "1e-3"}}, {"collect", "shard"}),
        ({"gates": {"maxCriaError": "0.5"}}, set()),
        ({"retention": "Keep"}, set()),
    ],
)
def test_a_changed_spec_makes_again_what_it_reads(change, stages) -> None:
    cluster = finished(**THIN)
    cluster.change("tiny", **change)
    run(cluster, random.Random(2))
    assert succeeded(cluster.trenchcoat)
    assert made_again(cluster) == stages
    if change.get("retention") != "Keep":
        assert "collect" not in stored(cluster)


def test_what_another_needs_is_kept_until_it_does_not() -> None:
    other = trenchcoat("other", minutes=5, transfer={"epochs": 3}, **THIN)
    cluster = Cluster({"tiny": trenchcoat(**THIN), "other": other}, [1])
    cluster.tenants["other"] = other.model_copy(
        update={"spec": other.spec.model_copy(update={"suspend": True})}
    )
    run(cluster, random.Random(1))
    assert succeeded(cluster.tenants["tiny"])
    assert "collect" in stored(cluster)
    cluster.change("other", suspend=False)
    run(cluster, random.Random(1))
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    assert not {"collect", "shard"} & stored(cluster)
    assert set(Counter(cluster.made).values()) == {1}


def test_one_that_keeps_everything_keeps_it_from_the_others_too() -> None:
    cluster = Cluster({"tiny": trenchcoat(**THIN), "keeper": trenchcoat("keeper", minutes=5)}, [2])
    run(cluster, random.Random(1))
    assert {"collect", "shard"} <= stored(cluster)


def test_one_that_comes_while_it_is_condemned_gets_it_back() -> None:
    cluster = Cluster.one(trenchcoat(**THIN), [2])
    for _ in range(30):
        plan = cluster.plan()
        cluster.carry_out(plan)
        if any(item.phase is DeletionPhase.CONDEMNED for item in cluster.deletions.values()):
            break
        cluster.schedule()
        for name in cluster.running():
            cluster.end(name, ChildPhase.SUCCEEDED)
    (key,) = cluster.deletions
    cluster.tenants["late"] = trenchcoat("late", minutes=9, transfer={"epochs": 7})
    run(cluster, random.Random(1))
    assert key in cluster.manifests and key in cluster.objects
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    assert set(Counter(cluster.made).values()) == {1}


def test_one_that_comes_while_it_is_purged_waits_and_makes_it_again() -> None:
    cluster = Cluster.one(trenchcoat(**THIN), [2])
    for _ in range(30):
        plan = cluster.plan()
        cluster.carry_out(plan)
        if any(item.phase is DeletionPhase.PURGING for item in cluster.deletions.values()):
            break
        cluster.schedule()
        for name in cluster.running():
            cluster.end(name, ChildPhase.SUCCEEDED)
    cluster.tenants["late"] = trenchcoat("late", minutes=9, transfer={"epochs": 7})
    run(cluster, random.Random(1))
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    assert made_again(cluster) == {"collect"}


def test_only_delete_waits_for_anything_when_deleted() -> None:
    for retention, waits in (("Keep", False), ("DeleteIntermediate", False), ("Delete", True)):
        cluster = Cluster.one(trenchcoat(retention=retention), [2])
        settle(cluster, "tiny")
        assert bool(cluster.trenchcoat.metadata.finalizers) is waits
    cluster.change("tiny", retention="Keep")
    settle(cluster, "tiny")
    assert not cluster.trenchcoat.metadata.finalizers


def test_deleted_with_everything_it_made_and_every_job_at_once() -> None:
    cluster = Cluster.one(trenchcoat(retention="Delete"), [2])
    for _ in range(4):
        settle(cluster, "tiny")
        cluster.schedule()
        for name in cluster.running()[:2]:
            cluster.end(name, ChildPhase.SUCCEEDED)
    settle(cluster, "tiny")
    cluster.schedule()
    assert cluster.running()
    cluster.objects.update(cluster.children[name].key for name in cluster.active())  # checkpoints
    cluster.delete("tiny")
    cluster.carry_out(cluster.plan(), "tiny")
    assert not cluster.children
    run(cluster, random.Random(1))
    assert not cluster.tenants
    assert not cluster.objects and not cluster.manifests and not cluster.deletions


def test_what_another_uses_stays() -> None:
    cluster = Cluster({"tiny": trenchcoat(retention="Delete"), "other": trenchcoat("other", minutes=1)}, [2])
    run(cluster, random.Random(1))
    before = set(cluster.objects)
    cluster.delete("tiny")
    run(cluster, random.Random(1))
    assert list(cluster.tenants) == ["other"]
    assert cluster.objects == before
    assert succeeded(cluster.tenants["other"])


def of_spec(cluster: Cluster) -> set[str]:
    return {artifact.key for artifact in world.artifacts_of(cluster.trenchcoat.spec).values()}


def test_former_intermediates_go_when_those_of_the_changed_spec_may() -> None:
    cluster = finished(retention="Keep")
    before = of_spec(cluster)
    cluster.change("tiny", layersPerCria=3, retention="DeleteIntermediate")
    after = of_spec(cluster)
    for _ in range(3):
        settle(cluster, "tiny")
        assert before <= cluster.objects, "a change that is undone finds everything"
        cluster.schedule()
        for name in [name for name in cluster.running() if "cria" not in name]:
            cluster.end(name, ChildPhase.SUCCEEDED)
    run(cluster, random.Random(1))
    assert succeeded(cluster.trenchcoat)
    assert {cluster.artifacts[key].stage.value for key in cluster.objects - after} == {
        "cria",
        "stitch",
        "evaluate",
        "export",
    }
    assert not {"collect", "shard"} & stored(cluster)
    left = {item.key for item in cluster.trenchcoat.status.superseded}
    assert left == cluster.objects - after


def test_a_change_that_is_undone_finds_everything() -> None:
    cluster = finished(**THIN, evaluate={"enabled": False})
    cluster.change("tiny", transfer={"epochs": 5})
    settle(cluster, "tiny")
    assert cluster.trenchcoat.status.superseded
    epochs = trenchcoat().spec.transfer.epochs
    cluster.change("tiny", transfer={"epochs": epochs})
    run(cluster, random.Random(1))
    assert succeeded(cluster.trenchcoat)
    assert {item.key for item in cluster.trenchcoat.status.superseded} & of_spec(cluster) == set()


def test_deleted_with_what_it_made_for_former_specs() -> None:
    cluster = finished(retention="Delete")
    cluster.change("tiny", layersPerCria=3)
    for _ in range(3):  # half of the second run
        settle(cluster, "tiny")
        cluster.schedule()
        for name in cluster.running():
            cluster.end(name, ChildPhase.SUCCEEDED)
    cluster.change("tiny", seed=9)
    cluster.delete("tiny")
    run(cluster, random.Random(1))
    assert not cluster.tenants
    assert not cluster.objects and not cluster.manifests and not cluster.deletions


def test_what_another_uses_of_a_former_spec_stays() -> None:
    cluster = Cluster({"tiny": trenchcoat(retention="Delete"), "other": trenchcoat("other", minutes=1)}, [2])
    run(cluster, random.Random(1))
    before = set(cluster.objects)
    cluster.change("tiny", seed=9)
    run(cluster, random.Random(1))
    assert cluster.objects > before
    cluster.delete("tiny")
    run(cluster, random.Random(1))
    assert cluster.objects == before
    assert succeeded(cluster.tenants["other"])


def test_two_deleted_together_leave_nothing() -> None:
    both = [trenchcoat(name, retention="Delete") for name in ("one", "two")]
    cluster = Cluster({tenant.metadata.name: tenant for tenant in both}, [2])
    run(cluster, random.Random(1))
    cluster.delete("one")
    cluster.delete("two")
    run(cluster, random.Random(1))
    assert not cluster.tenants and not cluster.objects and not cluster.deletions


def test_a_store_that_cannot_be_used_delays_the_deletion_but_does_not_stop_it() -> None:
    cluster = finished(retention="Delete")
    cluster.delete("tiny")
    down = Observed(store=StoreView(Problem("StoreUnreachable", "nobody answers")))

    def decide(after):
        return reconcile(cluster.trenchcoat, down, world.SETTINGS, cluster.now + after)

    waiting = decide(PATIENCE / 2)
    assert waiting.actions == () and waiting.look_again
    (release,) = decide(PATIENCE * 2).actions
    assert isinstance(release, SetFinalizer) and not release.present
    (event,) = decide(PATIENCE * 2).events
    assert (event.type, event.reason) == ("Warning", "ArtifactsKept")
    assert "s3://trenchcoat/trenchcoat/artifacts/" in event.message


@pytest.mark.slow
@given(
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from(["Keep", "DeleteIntermediate", "Delete"]), min_size=2, max_size=3),
)
@settings(max_examples=15, deadline=None, phases=(Phase.generate,))
def test_whoever_keeps_or_deletes_everyone_comes_to_the_end(
    luck: random.Random, retentions: list[str]
) -> None:
    """The simulation asserts that nothing is deleted while it is read or made, and that inputs are there."""
    tenants = {
        f"t{number}": trenchcoat(
            f"t{number}", minutes=number, retention=retention, transfer={"epochs": luck.randint(1, 2)}
        )
        for number, retention in enumerate(retentions)
    }
    cluster = Cluster(tenants, [2])
    run(cluster, luck)
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    for name in luck.choices(sorted(cluster.tenants), k=2):
        cluster.change(name, layersPerCria=luck.choice([2, 3, 4]), seed=luck.randint(1, 2))
        for _ in range(luck.randint(0, 2)):
            settle(cluster, name)
            cluster.schedule()
    run(cluster, luck)
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    victim = luck.choice(sorted(cluster.tenants))
    cluster.delete(victim)
    run(cluster, luck)
    assert victim not in cluster.tenants
    assert all(succeeded(tenant) for tenant in cluster.tenants.values())
    assert not any(
        isinstance(action, Purge) for name in cluster.tenants for action in cluster.plan(name).actions
    )
    if set(retentions) == {"Delete"}:
        for name in sorted(cluster.tenants):
            cluster.delete(name)
        run(cluster, luck)
        assert not cluster.tenants and not cluster.objects and not cluster.deletions
