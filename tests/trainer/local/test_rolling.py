"""Rolling collection on one machine: which boundaries are read, made anew and deleted."""

from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.local.rolling import Boundaries
from trenchcoat_trainer.local.schedule import ready
from trenchcoat_trainer.store.folder import FolderStore

CRIAS = cria_ranges(4, 1)


class Run:
    """A run of four Crias, over a store in a folder."""

    def __init__(self, spec: TrenchcoatSpec, folder: Path) -> None:
        self.store = FolderStore(folder / "trenchcoat")
        self.boundaries = Boundaries(spec, self.store, CRIAS)
        self.by_name = {item.name: item for item in self.boundaries.artifacts}
        self.complete: set[str] = set()

    def make(self, *names: str) -> None:
        for name in names:
            artifact: Artifact = self.by_name[name]
            if artifact.boundary is None:
                self.complete.add(artifact.key)
            self.store.write(artifact.prefix + "boundary/0.safetensors", b"states")
            self.store.write(artifact.manifest_path, b"{}")

    def look(self) -> tuple[set[str], list[str]]:
        """Boundaries that are there after a look, and what may start."""
        there, needed = self.boundaries.look(self.complete)
        names = {item.key: name for name, item in self.by_name.items()}
        found = ready(self.boundaries.artifacts, self.complete | there, set())
        starts = [names[item.key] for item in found if item.boundary is None or item.key in needed]
        return {names[key] for key in there}, starts


@pytest.fixture
def run(make_spec, tmp_path: Path) -> Run:
    spec: TrenchcoatSpec = make_spec(
        collect={"strategy": "Rolling"}, layersPerCria=1, evaluate={"adaptedTeacher": "never"}
    )
    return Run(spec, tmp_path)


def test_a_cria_begins_when_the_one_before_has_left_its_inputs(run: Run) -> None:
    run.make("tokenize", "shard")
    assert run.look() == (set(), ["cria-00"])
    run.make("collect-01")
    assert run.look() == ({"collect-01"}, ["cria-00", "cria-01"])


def test_a_boundary_goes_once_both_crias_beside_it_are_complete(run: Run) -> None:
    run.make("tokenize", "shard", "collect-01", "collect-02", "cria-01")
    assert run.look()[0] == {"collect-01", "collect-02"}, "Cria 0 still compares itself with it"
    run.make("cria-00")
    assert run.look() == ({"collect-02"}, ["cria-02"])
    assert not list(run.store.list(run.by_name["collect-01"].prefix))


def test_what_is_gone_and_needed_is_made_anew_from_the_first_that_is_missing(run: Run) -> None:
    run.make("tokenize", "shard", "cria-00", "cria-01")
    assert run.look() == (set(), ["collect-01"])
    run.make("collect-01")
    assert run.look() == ({"collect-01"}, ["collect-02"])
    run.make("collect-02")
    assert run.look() == ({"collect-02"}, ["cria-02"])


def test_nothing_is_made_that_nobody_reads(run: Run) -> None:
    run.make("tokenize", "shard", "cria-00", "cria-01", "cria-02", "cria-03")
    there, starts = run.look()
    assert not there
    assert starts == ["stitch"]
