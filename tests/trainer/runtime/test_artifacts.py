"""Writing artifacts, checkpoints and progress."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trenchcoat_api.artifacts import Artifacts, Facts, Progress
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import CorruptObjectError, MissingInputError, NotFoundError
from trenchcoat_trainer.runtime import objects, progress, writer
from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.runtime.progress import Curve, ProgressReporter
from trenchcoat_trainer.runtime.writer import ArtifactWriter
from trenchcoat_trainer.store import Entry, FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "bucket")


@pytest.fixture
def artifact(make_spec):
    return Artifacts(make_spec()).tokenize


def make_writer(store: FolderStore, artifact) -> ArtifactWriter:
    return ArtifactWriter(store, artifact, Clock(store, artifact))


def test_an_artifact_is_complete_with_its_manifest(store: FolderStore, artifact) -> None:
    made = make_writer(store, artifact)
    made.write("b", b"second")
    made.write_stream("a", iter([b"fi", b"rst"]), 5)
    with pytest.raises(MissingInputError, match="tokenize is not complete"):
        read_manifest(store, artifact)
    made.finish(Facts(losses={"transfer": "0.5"}))
    manifest = read_manifest(store, artifact)
    assert [(item.path, item.size) for item in manifest.objects] == [("a", 5), ("b", 6)]
    assert manifest.objects[0].sha256 == "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    assert manifest.facts.losses == {"transfer": "0.5"}
    assert not list(store.list(artifact.checkpoint_prefix))


@pytest.fixture
def listed(make_spec, open_stage, monkeypatch: pytest.MonkeyPatch):
    """A context, and an artifact of 10 objects in lists of 3, of which 2 stay in memory."""
    monkeypatch.setattr(writer, "LIST_OBJECTS", 3)
    monkeypatch.setattr(objects, "CACHED_LISTS", 2)
    context = open_stage(make_spec(), Stage.TOKENIZE)
    for number in range(10):
        context.writer.write(f"object-{number}", b"x" * number)
    context.writer.finish()
    return context


def test_many_objects_stand_in_lists_outside_the_manifest(listed) -> None:
    manifest = read_manifest(listed.store, listed.artifact)
    assert manifest.objects == []
    assert [(item.first, item.count, item.size) for item in manifest.lists] == [
        ("object-0", 3, 3),
        ("object-3", 3, 12),
        ("object-6", 3, 21),
        ("object-9", 1, 9),
    ]
    assert (manifest.count, manifest.size) == (10, 45)
    for number in (9, 0, 5, 3, 8, 1):
        assert listed.read_object(listed.artifact, f"object-{number}") == b"x" * number
    assert list(listed.object_paths(listed.artifact)) == [f"object-{number}" for number in range(10)]
    assert len(listed._index(listed.artifact)._cached) == 2


@pytest.mark.parametrize("path", ["a", "object-10", "object-44", "z"])
def test_an_object_that_no_list_has_is_named(listed, path: str) -> None:
    with pytest.raises(NotFoundError, match=f"object {path} is not in the manifest of tokenize"):
        listed.stored_object(listed.artifact, path)


@pytest.mark.parametrize("content", [b"", b"[]", None])
def test_a_damaged_list_is_named(listed, content: bytes | None) -> None:
    path = listed.artifact.prefix + "manifest/00001.jsonl"
    listed.store.write(path, listed.store.read(path).replace(b"4", b"5") if content is None else content)
    assert listed.read_object(listed.artifact, "object-1") == b"x"
    with pytest.raises(CorruptObjectError, match=r"manifest/00001\.jsonl does not have its checksum"):
        listed.read_object(listed.artifact, "object-4")


def test_a_few_objects_stand_in_the_manifest_itself(store: FolderStore, artifact) -> None:
    made = make_writer(store, artifact)
    made.write("a", b"first")
    made.finish()
    assert "lists" not in json.loads(store.read(artifact.manifest_path))


def test_a_manifest_that_cannot_be_read_is_named(store: FolderStore, artifact) -> None:
    store.write(artifact.manifest_path, b"{}")
    with pytest.raises(CorruptObjectError, match=artifact.manifest_path):
        read_manifest(store, artifact)


def test_writers_of_all_ranks_come_together_in_the_manifest(store: FolderStore, artifact) -> None:
    ranks = [make_writer(store, artifact) for _ in range(3)]
    for number, rank in enumerate(ranks):
        rank.write(f"object-{number}", b"x" * number)
        rank.save_journal()
    ranks[0].finish()
    assert [item.path for item in read_manifest(store, artifact).objects] == [
        "object-0",
        "object-1",
        "object-2",
    ]


def test_the_next_attempt_knows_what_was_recorded(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "JOURNAL_OBJECTS", 3)
    first = make_writer(store, artifact)
    for number in range(10):
        first.write(f"object-{number}", b"data")
    first.save_journal()
    first.write("late", b"data")
    second = make_writer(store, artifact)
    assert all(second.recorded(f"object-{number}") for number in range(10))
    assert second.recorded("late") is None
    store.delete(artifact.prefix + "object-3")
    store.write(artifact.prefix + "object-4", b"cut")
    third = make_writer(store, artifact)
    assert third.recorded("object-3") is None
    assert third.recorded("object-4") is None


def test_another_rank_may_delete_what_it_is_done_with_at_any_moment(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_writer(store, artifact)
    first.write("object", b"data")
    first.save_journal()
    Clock(store, artifact).save()
    known = store.list(artifact.checkpoint_prefix)
    gone = [entry.path for entry in known]
    assert len(gone) == 2
    first.finish()
    monkeypatch.setattr(store, "list", lambda prefix: iter([Entry(path, 1) for path in gone]))
    monkeypatch.setattr(store, "exists", lambda path: True)
    assert make_writer(store, artifact).recorded("object") is None


def test_objects_may_be_written_from_threads(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "JOURNAL_SECONDS", 0.0)
    monkeypatch.setattr(writer, "JOURNAL_OBJECTS", 7)
    made = make_writer(store, artifact)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: made.write(f"{number:03d}", b"x" * number), range(100)))
    assert [item.size for item in made.finish().objects] == list(range(100))


def test_a_checkpoint_gives_back_tensors_and_state(store: FolderStore, artifact) -> None:
    checkpoint = Checkpoint(store, artifact)
    assert checkpoint.load() is None
    checkpoint.save({"w": torch.ones(2)}, {"step": 3})
    checkpoint.save({"w": torch.zeros(2).bfloat16()}, {"step": 4, "epoch": 1})
    checkpoint.save({}, {"rank": 1}, name="rank-1")
    loaded = Checkpoint(store, artifact).load()
    assert loaded is not None
    assert torch.equal(loaded[0]["w"], torch.zeros(2).bfloat16())
    assert loaded[1] == {"step": 4, "epoch": 1}
    assert checkpoint.load("rank-1") == ({}, {"rank": 1})


def test_a_damaged_checkpoint_is_named_with_the_remedy(store: FolderStore, artifact) -> None:
    store.write(artifact.checkpoint_prefix + "state.safetensors", b"\x80\x04pickle")
    with pytest.raises(CorruptObjectError, match=r"state\.safetensors .* delete it to start afresh"):
        Checkpoint(store, artifact).load()


def test_time_is_counted_over_all_attempts(store: FolderStore, artifact) -> None:
    first = Clock(store, artifact)
    time.sleep(0.05)
    first.save()
    second = Clock(store, artifact)
    assert second.started_at == first.started_at
    assert second.seconds >= 0.05


def read_progress(store: FolderStore, artifact) -> Progress:
    return Progress.model_validate_json(store.read(artifact.progress_path))


def test_progress_is_reported_now_and_then_and_at_the_end(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(store, "write", lambda path, data: written.append((path, json.loads(data))))
    reporter = ProgressReporter(store, artifact, Clock(store, artifact))
    for step in range(1, 101):
        clock.now += 0.005
        reporter.update("transfer", step, 100, fraction=step / 200, losses={"transfer": 1 / step}, tokens=10)
    reports = [body for path, body in written if path == artifact.progress_path]
    assert [body["step"] for body in reports] == [1, 100]
    assert reports[-1]["losses"] == {"transfer": "0.01"}
    assert reports[-1]["fraction"] == 0.5
    assert reports[-1]["tokensPerSecond"] > 0
    assert reports[-1]["etaSeconds"] > 0


@pytest.mark.parametrize(
    ("keeps_versions", "seconds"),
    [(False, [0, 1, 2, 4, 7, 10, 13, 16]), (True, [0, 1, 2, 4, 8, 16, 32, 64, 124, 184])],
)
def test_the_first_reports_come_soon_and_later_ones_at_intervals(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch, keeps_versions: bool, seconds: list[int]
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(store, "keeps_versions", keeps_versions, raising=False)
    reporter = ProgressReporter(store, artifact, Clock(store, artifact))
    told = []
    reporter.listener = lambda report: told.append((clock.now - 1000, report.eta_seconds))
    for second in range(seconds[-1] + 1):
        clock.now = 1000.0 + second
        reporter.update("collect", second, 400, fraction=second / 400)
    assert [at for at, _ in told] == seconds
    assert told[1][1] == pytest.approx(399)  # a stage that takes 400 s says so after one


def test_a_new_phase_begins_a_new_curve(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    reporter = ProgressReporter(store, artifact, Clock(store, artifact))
    reporter.update("transfer", 1, 2, fraction=0.25, losses={"transfer": 5.0})
    reporter.update("lora", 1, 2, fraction=0.75, losses={"lora": 2.0})
    report = read_progress(store, artifact)
    assert (report.phase, report.curve) == ("lora", ["2"])


def test_other_ranks_are_silent(store: FolderStore, artifact) -> None:
    reporter = ProgressReporter(store, artifact, Clock(store, artifact), silent=True)
    reporter.update("collect", 1, 1, fraction=1.0)
    assert not store.exists(artifact.progress_path)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65, 1000])
def test_a_curve_keeps_few_points_evenly(count: int) -> None:
    curve = Curve()
    for value in range(count):
        curve.add(float(value))
    assert 1 <= len(curve.points) <= 32
    steps = {after - before for before, after in zip(curve.points, curve.points[1:], strict=False)}
    assert len(steps) <= 1
    assert curve.points[0] == 0
    assert len(curve.points) > min(count, 32) // 2 - 1


def test_progress_tells_how_far_the_latest_checkpoint_of_this_attempt_is(
    store: FolderStore, artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures before a later checkpoint are forgiven by the operator: what a former attempt saved is not."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)

    def told(reporter: ProgressReporter, fraction: float) -> float | None:
        reporter.update("lora", int(10 * fraction), 10, fraction=fraction)
        return Progress.model_validate_json(store.read(artifact.progress_path)).saved_fraction

    first = ProgressReporter(store, artifact, Clock(store, artifact))
    assert told(first, 0.1) is None
    first.saved()
    assert told(first, 0.2) == 0.1
    assert told(first, 0.3) == 0.1
    first.saved()
    assert told(first, 0.4) == 0.3
    second = ProgressReporter(store, artifact, Clock(store, artifact))
    second.go_on("lora", first.curve.state())
    assert told(second, 0.4) is None
