"""`trenchcoat run`, with every stage as a process of its own: the adapted teacher, and what is left out."""

import json
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.storage import artifact_bytes
from trenchcoat_api.planning.timing import Fleet, times
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.local.planning import read_model
from trenchcoat_trainer.runtime.cores import usable_cores
from trenchcoat_trainer.runtime.devices import usable_gpus
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.store import open_store

from tests.trainer.helpers.killing import write_spec

pytestmark = pytest.mark.slow

WINDOW = {
    "data": {"tokens": 20 * 64},
    "layersPerCria": 5,
    "attention": {"form": "window", "window": 8, "firstTokens": 1},
    "criaLora": {"epochs": 0},
    "stitch": {"batchSize": 4, "learningRate": "1e-2"},
    "evaluate": {"lengthMultiples": [2], "recallSamples": 4, "nodes": 2},
    "export": {"enabled": False},
}
"""A student whose Crias have nothing to train."""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without broken lines."""
    monkeypatch.setenv("COLUMNS", "200")


def run(spec: TrenchcoatSpec, folder: Path) -> tuple[int, dict]:
    summary = folder / "summary.json"
    command = ["run", str(write_spec(spec, folder)), "--store", str(folder / "store")]
    code = main([*command, "--summary", str(summary)])
    return code, json.loads(summary.read_text()) if summary.exists() else {}


def test_a_run_trains_the_adapted_teacher_and_collects_nothing_that_nobody_reads(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = run(make_spec(**WINDOW), tmp_path)
    assert code == ExitCode.OK
    names = [stage["name"] for stage in summary["stages"]]
    assert names == ["tokenize", "shard", "cria", "stitch", "adapt", "evaluate"]
    perplexities = {name: values["64"] for name, values in summary["perplexities"].items()}
    assert perplexities["adaptedTeacher"] < perplexities["teacher"]
    assert set(summary["perplexities"]["adaptedTeacher"]) == {"64", "128"}
    told = capsys.readouterr().out
    assert "adapted on the same tokens" in told and "to adapted teacher" in told
    assert "collect" not in told
    assert told.index("stitch: complete") < told.index("adapt: started") < told.index("evaluate: started")
    ranks = min(2, usable_gpus() or usable_cores())
    assert len(list((tmp_path / "store" / "logs").glob("evaluate*.log"))) == ranks


def test_a_run_goes_on_without_an_adapted_teacher_that_cannot_be_trained(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(**WINDOW)
    place = tmp_path / "store" / "trenchcoat" / Artifacts(spec).adapt.prefix
    place.parent.mkdir(parents=True)
    place.touch()  # a file where its folder should be
    code, summary = run(spec, tmp_path)
    assert code == ExitCode.OK
    assert "adaptedTeacher" not in summary["perplexities"]
    told = capsys.readouterr().out
    assert "warning: the evaluation goes on without the adapted teacher" in told
    assert "training it failed" in told

    demanding = make_spec(**WINDOW | {"evaluate": WINDOW["evaluate"] | {"adaptedTeacher": "always"}})
    assert run(demanding, tmp_path)[0] != ExitCode.OK
    assert "adapt failed" in capsys.readouterr().err

    place.unlink()  # mended: what was left out is trained now, and the evaluation made anew
    code, summary = run(spec, tmp_path)
    assert code == ExitCode.OK and "adaptedTeacher" in summary["perplexities"]
    evaluations = [item for item in Artifacts(spec).all(cria_ranges(5, 5)) if item.stage == "evaluate"]
    assert (tmp_path / "store" / "trenchcoat" / evaluations[0].manifest_path).exists()


def tells_its_rates(
    spec: TrenchcoatSpec, folder: Path, outline: Outline, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what `trenchcoat rates` prints of a run, a plan of it has no stage that takes less than it took."""
    capsys.readouterr()
    command = ["rates", str(write_spec(spec, folder)), "--store", str(folder / "store")]
    assert main([*command, "--name", "here"]) == ExitCode.OK
    file = folder / "rates.yaml"
    file.write_text(capsys.readouterr().out)
    rates = Rates.load(file)
    name, kind = rates.kind(None)
    assert (name, kind.dtype) == ("here", spec.dtype)
    store = open_store(spec, folder / "store")
    took: dict[str, list[float]] = {}
    for artifact in Artifacts(spec).all(list(outline.crias)):
        took.setdefault(artifact.stage, []).append(read_manifest(store, artifact).seconds)
    told = {time.stage: time.job for time in times(outline, Fleet(kind, rates, 1)).stages}
    assert told.keys() == took.keys()
    for stage, seconds in took.items():
        assert told[stage] > sum(seconds) / len(seconds) * 0.99, stage


def test_a_run_leaves_the_bytes_that_were_planned(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors of every stage within 2%; what else stands beside them is no part of the plan."""
    short = {"epochs": 1, "batchSize": 4, "microBatchSize": 4}
    spec = make_spec(
        data={"tokens": 20 * 64},
        transfer=short,
        criaLora=short,
        stitch={"epochs": 1, "batchSize": 4, "microBatchSize": 4},
        evaluate={"enabled": False},
    )
    store = open_store(spec, tmp_path / "store")
    assert run(spec, tmp_path)[0] == ExitCode.OK
    text = read_manifest(store, Artifacts(spec).tokenize).facts.data
    planned = Outline.of(spec, read_model(spec, tmp_path / "store"), text)
    left: dict[str, int] = {}
    for artifact in Artifacts(spec).all(list(planned.crias)):
        sizes = [
            item.size for item in read_manifest(store, artifact).objects if item.path.endswith(".safetensors")
        ]
        left[artifact.stage] = left.get(artifact.stage, 0) + sum(sizes)
    assert {stage: artifact_bytes(planned, stage) for stage in left} == {
        stage: pytest.approx(size, rel=0.02) for stage, size in left.items()
    }
    tells_its_rates(spec, tmp_path, planned, capsys)
    # The Crias have read what was collected: as after a chain of them, nothing is collected for nobody.
    (tmp_path / "store" / "trenchcoat" / Artifacts(spec).collect.manifest_path).unlink()
    assert run(spec, tmp_path)[0] == ExitCode.OK
    assert not store.exists(Artifacts(spec).collect.manifest_path)
