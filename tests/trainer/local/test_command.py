"""The command `trenchcoat run` where it cannot begin: it says what is at fault, before any stage starts."""

import signal
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.local.processes import StageProcesses, open_logs
from trenchcoat_trainer.runtime.processes import RankProcesses
from trenchcoat_trainer.store import open_store

from tests.trainer.helpers.killing import write_spec


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which breaks no message into lines: somebody looks for it, or copies what it names."""
    monkeypatch.setenv("COLUMNS", "40")


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_run_trains_at_least_one_cria_at_a_time(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "any.yaml", "--parallel-crias", count])
    assert f"'{count}' is no number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a-file/summary.json"])
def test_where_the_summary_cannot_be_written_nothing_starts(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "a-file").touch()
    file, store = write_spec(make_spec(), tmp_path), tmp_path / "store"
    code = main(["run", str(file), "--store", str(store), "--summary", str(tmp_path / name)])
    assert code == ExitCode.BAD_INPUT
    assert f"--summary {tmp_path / name} cannot be written" in capsys.readouterr().err
    assert not store.exists()


def test_a_store_that_is_no_folder_is_named(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").touch()
    store = tmp_path / "a-file" / "store"
    assert main(["run", str(write_spec(make_spec(), tmp_path)), "--store", str(store)]) == 69
    told = capsys.readouterr().err
    assert f"error: {store}/logs cannot be written to (Not a directory): name with --store" in told


def test_a_store_where_another_run_is_at_work_is_refused(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = tmp_path / "store", write_spec(make_spec(), tmp_path)
    with open_logs(store):
        assert main(["run", str(file), "--store", str(store)]) == ExitCode.BAD_INPUT
    assert f"another `trenchcoat run` is at work in {store}: wait until" in capsys.readouterr().err
    with open_logs(store):
        pass  # it is free again


def test_a_damaged_manifest_is_named_with_the_remedy(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: TrenchcoatSpec = make_spec()
    store, tokenize = tmp_path / "store", Artifacts(spec).tokenize
    open_store(spec, store).write(tokenize.manifest_path, b"{")
    assert main(["run", str(write_spec(spec, tmp_path)), "--store", str(store)]) == ExitCode.FAILED
    told = capsys.readouterr().err
    assert f"error: {tokenize.manifest_path} is no manifest: delete it" in told


def test_a_stage_that_was_killed_says_what_may_have_done_it(make_spec, tmp_path: Path) -> None:
    shard = Artifacts(make_spec()).shard
    stage = StageProcesses(shard, tmp_path, [], RankProcesses([]), [])
    assert "memory has run out" in stage.failure(-signal.SIGKILL)
    assert stage.failure(-signal.SIGSEGV).startswith("signal 11 ended it and left no message")
    assert stage.failure(3) == f"it ended with exit code 3 and left no message; see {tmp_path}/shard*.log"
    (tmp_path / "shard.failure").write_text("its own words")
    assert stage.failure(-signal.SIGKILL) == "its own words"
