"""Waiting is told alike in status, conditions, events and in the report that stages write into the store."""

from pathlib import Path

import pytest
import yaml
from trenchcoat_api import waiting
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_trainer.reporting.writing import open_reporter

from tests.control_plane import ControlPlane, node
from tests.minio_server import ACCESS_KEY, SECRET_KEY, MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator

pytestmark = pytest.mark.slow

GPU = "waits.example/gpu"
HELD = ("Waiting", "Gpu")


def test_who_waits_for_gpus_is_told_alike_everywhere(
    plane: ControlPlane, server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, scheduling = namespace(plane, "waits"), {"gpuResource": GPU}
    node(plane, "waits-1", {GPU: "1"})
    first = Run(plane, server, where, "first", scheduling=scheduling)
    second = Run(plane, server, where, "second", seed=7, scheduling=scheduling)
    try:
        with operator(plane) as loop:
            first.begin()
            loop.until(first, lambda told: crias(told)[1:] == [HELD, HELD], 120, "one has the GPU")
            second.begin()
            loop.until(second, lambda told: crias(told) == [HELD] * 3, 120, "the others wait")
            seen = loop.until(
                first, lambda told: "2 of 2" in told.get("waiting", "") and told, 120, "its place is told"
            )
    finally:
        plane.core.delete_node("waits-1")
        plane.delete("first", where)
        plane.delete("second", where)

    row = seen["crias"][1]
    since = row["waitingSince"]
    assert row["waits"] == [{"reason": "Gpu", "since": since, "message": row["message"]}]
    words = waiting.explain(Trenchcoat.from_object({**first.body, "status": seen}).status.crias[1])
    assert f"since {since}, place 2 of 2 among Trenchcoats that wait for them: " in words
    assert seen["waiting"] == f"Cria 1 (layers 4-7) {words}; so does 1 other"
    assert condition(seen, "Succeeded")["message"].endswith(seen["waiting"])
    events = plane.core.list_namespaced_event(where, field_selector="reason=Waits").items
    told = [item.message for item in events if item.involved_object.name == "first"]
    assert told and told[0].startswith(f"Cria 1 (layers 4-7) waits for GPUs since {since}, place 1 of 1")

    file = tmp_path / "first.yaml"
    file.write_text(yaml.safe_dump(first.body))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    reporter = open_reporter(Trenchcoat.from_yaml(file), file, None)
    kept = reporter.write().trenchcoat.status
    assert waiting.explain(kept.crias[1]).startswith(f"waits for GPUs since {since}, place ")
    assert [item.number for item in kept.crias[0].attempts] == [1]
    page = reporter.gatherer.store.read(reporter.place.page_path).decode()
    assert f"Gpu from {since} for " in page and waiting.explain(kept.crias[1]) in page
