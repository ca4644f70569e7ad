"""Rolling collection on a real API server and a real store: the chain of Crias, and what goes behind it."""

from collections.abc import Iterator

import pytest
from trenchcoat_api.status import State

from tests.control_plane import Body, ControlPlane, node
from tests.minio_server import BUCKET, MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator, row

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"


@pytest.fixture
def chain(request: pytest.FixtureRequest, plane: ControlPlane, server: MinioServer) -> Iterator[Run]:
    """A run with GPUs for all its Crias."""
    name = request.param
    node(plane, name, {GPU: "4"})
    run = Run(
        plane,
        server,
        namespace(plane, name),
        "chain",
        collect={"strategy": "Rolling"},
        scheduling={"distributed": "IndexedJob"},
    )
    yield run
    plane.delete(run.name, run.namespace)
    plane.core.delete_node(name)


def made(run: Run) -> set[str]:
    """Crias that have a Job, and boundaries that have one of their own."""
    return {"-".join(job.metadata.name.split("-")[1:3]) for job in run.jobs()}


def stored(run: Run, name: str) -> list[str]:
    """What the store has of an artifact, but for the note that it was deleted."""
    prefix = run.artifacts[name].prefix
    found = [item.object_name for item in run._store.list_objects(BUCKET, prefix, recursive=True)]
    return [path for path in found if not path.endswith("deleted.json")]


def collection(status: Body) -> Body:
    return row(status, "collect")


@pytest.mark.parametrize("chain", ["rolling"], indirect=True)
def test_each_cria_begins_when_the_one_before_has_left_its_inputs_which_go_once_read(
    plane: ControlPlane, chain: Run
) -> None:
    run = chain
    with operator(plane) as loop:
        run.begin(done=("tokenize", "shard"))
        seen = loop.until(run, lambda status: made(run) == {"cria-00"} and status, 120, "the first Cria")
        assert crias(seen)[1:] == [(State.BLOCKED, "")] * 2
        assert "waits for collect" in seen["crias"][1]["message"]

        run.complete("collect-01")  # Cria 0 goes on
        seen = loop.until(run, lambda status: "cria-01" in made(run) and status, 120, "the second Cria")
        assert collection(seen)["message"].startswith("1 of 2 boundaries made"), collection(seen)
        assert condition(seen, "ActivationsReady")["status"] == "False"
        assert made(run) == {"cria-00", "cria-01"}

        run.complete("collect-02")
        run.complete("cria-01")
        loop.until(run, lambda status: "cria-02" in made(run), 120, "the third Cria")
        assert stored(run, "collect-01"), "Cria 0 still compares itself with it"

        run.complete("cria-00")
        loop.until(run, lambda status: not stored(run, "collect-01"), 120, "the first boundary to go")
        assert stored(run, "collect-02")

        run.complete("cria-02")
        seen = loop.until(
            run,
            lambda status: not stored(run, "collect-02") and condition(status, "CriasTrained") and status,
            120,
            "the second boundary to go",
        )
        seen = loop.until(run, lambda status: not collection(status).get("bytes") and status, 120, "no bytes")
        assert condition(seen, "ActivationsReady")["status"] == "True"
        assert condition(seen, "CriasTrained")["status"] == "True"
        assert not [name for name in made(run) if name.startswith("collect")]


@pytest.mark.parametrize("chain", ["rolling-missed"], indirect=True)
def test_no_boundary_is_made_anew_that_is_there_though_it_was_missed_a_moment_ago(
    plane: ControlPlane, chain: Run
) -> None:
    """Of two, the first is found before its Job is made; that of the second must not be made instead."""
    run = chain
    with operator(plane) as loop:
        loop.miss(run, "collect-01", "collect-02")
        run.begin(done=("tokenize", "shard", "cria-00", "collect-01", "cria-01", "collect-02"))
        loop.until(run, lambda status: made(run), 120, "a Job")
        assert made(run) == {"cria-02"}


@pytest.mark.parametrize("chain", ["rolling-changed"], indirect=True)
def test_a_run_that_changes_its_strategy_when_the_crias_are_trained_collects_nothing(
    plane: ControlPlane, chain: Run
) -> None:
    run = chain
    with operator(plane) as loop:
        # Neither does one that believes a Cria to be missing.
        loop.miss(run, "cria-02")
        run.begin(done=("tokenize", "shard", "cria-00", "cria-01", "cria-02"))
        for generation, strategy in enumerate(("Rolling", "Distributed", "Rolling"), start=1):
            if generation > 1:
                plane.trenchcoats.patch_namespaced_custom_object(
                    "trenchcoat.dev",
                    "v1alpha1",
                    run.namespace,
                    "trenchcoats",
                    run.name,
                    {"spec": {"collect": {"strategy": strategy}}},
                )
            seen = loop.until(
                run,
                lambda status, wanted=generation: (
                    status.get("observedGeneration") == wanted
                    and condition(status, "CriasTrained").get("status") == "True"
                    and status
                ),
                120,
                "the Crias are found",
            )
            assert condition(seen, "ActivationsReady")["reason"] == "NotNeeded"
            jobs = {job.metadata.labels["trenchcoat.dev/stage"] for job in run.jobs()}
            assert jobs <= {"stitch"}
