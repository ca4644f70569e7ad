"""`trenchcoat rates` where there is no run to tell of, or none that tells anything."""

from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.paces import paces_path
from trenchcoat_trainer.cli import main

from tests.trainer.helpers.killing import write_spec


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages without broken lines."""
    monkeypatch.setenv("COLUMNS", "250")


def rates(file: Path, store: Path, *options: str) -> int:
    return main(["rates", str(file), "--store", str(store), *options])


def test_a_store_without_the_run(make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_spec(make_spec(), tmp_path)
    assert rates(file, tmp_path / "store") != ExitCode.OK
    assert "has no run of this spec" in capsys.readouterr().err


def test_what_the_run_has_not_left_yet_is_told(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec()
    file = write_spec(spec, tmp_path)
    assert main(["tokenize", "--spec", str(file), "--store", str(tmp_path / "store")]) == ExitCode.OK
    capsys.readouterr()
    assert rates(file, tmp_path / "store", "--name", "mine") == ExitCode.OK
    told = capsys.readouterr()
    assert "default: mine" in told.out
    assert "of collect, shard, cria, stitch, adapt, evaluate, export this run tells no times" in told.err

    assert rates(file, tmp_path / "store", "--like", "tpu") == ExitCode.BAD_INPUT
    assert "no rates of a GPU 'tpu'" in capsys.readouterr().err

    paces = tmp_path / "store" / spec.store.bucket / paces_path(Artifacts(spec).tokenize)
    paces.write_text('{"ranks": 0}')
    assert rates(file, tmp_path / "store") != ExitCode.OK
    assert f"{paces_path(Artifacts(spec).tokenize)} cannot be read" in capsys.readouterr().err
    paces.unlink()  # as an earlier version leaves it
    assert rates(file, tmp_path / "store") == ExitCode.BAD_INPUT
    assert "run it anew with this version" in capsys.readouterr().err
