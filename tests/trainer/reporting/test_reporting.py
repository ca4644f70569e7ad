"""The report beside the artifacts: of `trenchcoat run`, of stages on their own, and anew."""

import html
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.status import Source, State
from trenchcoat_report import page as drawing
from trenchcoat_report.run import Run
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.local.keeping import kept_report
from trenchcoat_trainer.reporting import writing
from trenchcoat_trainer.reporting.writing import ENV_REPORT, Reporter, open_reporter
from trenchcoat_trainer.store.s3 import S3Store

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer
from tests.trainer.helpers.killing import write_spec

SETTINGS = {
    "data": {"tokens": 20 * 64},
    "layersPerCria": 3,
    "attention": {"window": 8, "featureDim": 4},
    "transfer": {"batchSize": 4, "learningRate": "1e-2"},
    "criaLora": {"epochs": 0},
    "stitch": {"batchSize": 4, "learningRate": "1e-2"},
    "evaluate": {"lengthMultiples": [2], "recallSamples": 4, "adaptedTeacher": "never"},
    "gates": {"maxPerplexityRatio": "1000"},
}


def place(spec: TrenchcoatSpec, folder: Path) -> Reporter:
    """What keeps the report of a spec's run in a folder."""
    file = write_spec(spec, folder)
    return open_reporter(Trenchcoat.from_yaml(file), file, folder / "store")


def read(spec: TrenchcoatSpec, folder: Path) -> tuple[str, Run]:
    """The page in the store, and the run that stands beside it."""
    reporter = place(spec, folder)
    run = Run.model_validate_json(reporter.gatherer.store.read(reporter.place.run_path))
    page = reporter.page_file
    return page.read_text() if page is not None and page.exists() else "", run


def load_as_told(page: str, folder: Path) -> None:
    """Run the lines that the page loads the student by, as they stand there."""
    program = html.unescape(re.findall(r'<code class="python">(.*?)</code>', page, re.DOTALL)[0])
    words = [sys.executable, "-c", program]
    loaded = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
    assert loaded.returncode == 0 and loaded.stdout.strip(), loaded.stderr


@pytest.mark.slow
def test_a_run_leaves_a_report_and_the_next_one_stands_beside_it(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(**SETTINGS | {"layersPerCria": 5})
    file, store = write_spec(spec, tmp_path), tmp_path / "store"
    assert main(["run", str(file), "--store", str(store)]) == ExitCode.OK
    page, run = read(spec, tmp_path)
    assert str(place(spec, tmp_path).page_file) in capsys.readouterr().out
    assert run.is_complete and "This page is final." in page and "Beside former runs" not in page
    states = {name: (row.state, row.source) for name, _, row in run.works()}
    assert set(states) == {"tokenize", "collect", "shard", "Cria 0", "stitch", "evaluate", "export"}
    assert set(states.values()) == {(State.SUCCEEDED, Source.COMPUTED)}
    assert [item.layer for item in run.layers] == [0, 1, 2, 3, 4]
    assert all(item.error and 0 < float(item.outside) < 1 for item in run.layers)
    assert all(float(after) <= float(before) for before, after in (item.losses for item in run.layers))
    assert run.curves["stitch"] and "spec.gates.maxPerplexityRatio" in page
    assert run.samples and {tuple(item.continuations) for item in run.samples} == {("teacher", "stitched")}
    assert "Side by side" in page

    assert str(run.trenchcoat.status.export_uri) in page
    load_as_told(page, tmp_path)
    going_on = html.unescape(re.findall(r'<code class="console">\$ trenchcoat (run .*?)</code>', page)[0])
    assert going_on == f"run {file} --store {store}"

    # Another student of the same teacher: what is shared was not made by its run, and is told as reused.
    changes = {"attention": {"window": 16, "featureDim": 4}, "export": {"form": "adapters"}}
    changes["gates"] = {"maxPerplexityRatio": None}
    other = make_spec(**SETTINGS | changes | {"layersPerCria": 5})
    assert main(["run", str(write_spec(other, tmp_path)), "--store", str(store)]) == ExitCode.OK
    page, later = read(other, tmp_path)
    assert {name: row.source for name, _, row in later.works()}["tokenize"] is Source.REUSED
    assert {name: row.source for name, _, row in later.works()}["Cria 0"] is Source.COMPUTED
    assert "Beside former runs" in page and "spec.attention.window" in page
    assert "from_adapters" in page
    load_as_told(page, tmp_path)

    # Written anew by hand, by the file and by the name.
    capsys.readouterr()
    output = tmp_path / "out" / "page.html"
    assert main(["report", str(file), "--store", str(store), "--output", str(output)]) == ExitCode.OK
    assert "This page is final." in output.read_text()
    name = run.name
    monkeypatch.chdir(tmp_path)
    assert main(["report", name, "--store", str(store)]) == ExitCode.OK
    assert "report.html" in capsys.readouterr().out
    assert main(["report", "nobody", "--store", str(store)]) == ExitCode.BAD_INPUT
    assert "no report of a Trenchcoat nobody" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_says_so_in_its_report(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(**SETTINGS | {"gates": {"maxCriaError": "0.000001"}})
    code = main(["run", str(write_spec(spec, tmp_path)), "--store", str(tmp_path / "store")])
    assert code == ExitCode.FAILED
    page, run = read(spec, tmp_path)
    assert "spec.gates.maxCriaError" in run.failure and ">Failed</span>" in page
    assert "not kept by Cria 0, 1" in page


def test_stages_on_their_own_write_it_at_their_ends(make_spec, tmp_path: Path) -> None:
    spec = make_spec(**SETTINGS)
    words = ["--spec", str(write_spec(spec, tmp_path)), "--store", str(tmp_path / "store")]
    before = datetime.now(UTC)
    assert main(["tokenize", *words]) == ExitCode.OK
    page, run = read(spec, tmp_path)
    assert before <= run.began <= datetime.now(UTC)
    assert {name: row.state for name, _, row in run.works()} == {
        "tokenize": State.SUCCEEDED,
        "collect": State.WAITING,
        "shard": State.WAITING,
        "Cria 0": State.BLOCKED,
        "Cria 1": State.BLOCKED,
        "stitch": State.BLOCKED,
        "evaluate": State.BLOCKED,
        "export": State.BLOCKED,
    }
    assert "The run goes on" in page
    assert main(["shard", *words]) == ExitCode.OK
    page, after = read(spec, tmp_path)
    assert after.began == run.began
    assert {name: row.state for name, _, row in after.works()}["shard"] is State.SUCCEEDED


def test_a_stage_that_is_told_to_leaves_it_alone(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_REPORT, "never")
    spec = make_spec(**SETTINGS)
    words = ["--spec", str(write_spec(spec, tmp_path)), "--store", str(tmp_path / "store")]
    assert main(["tokenize", *words]) == ExitCode.OK
    page = place(spec, tmp_path).page_file
    assert page is not None and not page.parent.exists()


def test_a_stage_is_complete_whatever_becomes_of_the_report(
    make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(**SETTINGS)
    page = place(spec, tmp_path).page_file
    assert page is not None
    page.parent.parent.mkdir(parents=True)
    page.parent.touch()  # a file where its folder should be
    words = ["--spec", str(write_spec(spec, tmp_path)), "--store", str(tmp_path / "store")]
    assert main(["tokenize", *words]) == ExitCode.OK
    assert place(spec, tmp_path).gatherer.complete()
    assert "the report was not written; `trenchcoat report` writes it anew" in capsys.readouterr().err


def test_a_run_goes_on_where_its_report_cannot_be_drawn(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html.j2").write_text("{{ run.no_such_figure }}")
    (tmp_path / "report.css").touch()
    monkeypatch.setattr(drawing, "files", lambda package: tmp_path)
    file, told = write_spec(make_spec(**SETTINGS), tmp_path), list[str]()
    trenchcoat = Trenchcoat.from_yaml(file)
    with kept_report(trenchcoat, file, tmp_path / "store", told.append) as report:
        report.write()
        report.refresh()
    assert report.file is None
    (line,) = told
    assert "cannot be drawn (UndefinedError:" in line and "no_such_figure" in line
    # And what ends a run is told as it is, not what then befell its report.
    broken = pytest.raises(ZeroDivisionError)
    with broken, kept_report(trenchcoat, file, tmp_path / "store", told.append):
        raise ZeroDivisionError
    assert len(told) == 2


def test_without_what_draws_a_run_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert writing.missing() == ""
    monkeypatch.setattr(writing, "NEEDED", ("matplotlib", "no_such_module"))
    assert "what draws it is not installed (no_such_module)" in writing.missing()
    assert "pip install 'trenchcoat[report]'" in writing.missing()


def test_who_looked_before_others_were_done_looks_again(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages end at the same time: whichever report is written last has both."""
    spec = make_spec(**SETTINGS)
    words = ["--spec", str(write_spec(spec, tmp_path)), "--store", str(tmp_path / "store")]
    monkeypatch.setenv(ENV_REPORT, "never")
    assert main(["tokenize", *words]) == ExitCode.OK
    reporter = place(spec, tmp_path)
    write, done = reporter.gatherer.store.write, []

    def slow_write(path: str, data: bytes) -> None:
        if not done:  # between look and write, another stage ends and has written its report
            done.append(path)
            assert main(["shard", *words]) == ExitCode.OK
            place(spec, tmp_path).write()
        write(path, data)

    monkeypatch.setattr(reporter.gatherer.store, "write", slow_write)
    reporter.write()
    _, run = read(spec, tmp_path)
    assert {name: row.state for name, _, row in run.works()}["shard"] is State.SUCCEEDED


def test_a_stage_without_news_is_not_called_running(make_spec, tmp_path: Path) -> None:
    spec = make_spec(**SETTINGS)
    reporter = place(spec, tmp_path)
    artifact = reporter.gatherer.gather(None).trenchcoat.status.stages[0]
    path = f"{spec.store.prefix}/artifacts/tokenize/{artifact.key}/progress.json"
    news = {
        "stage": "tokenize",
        "key": artifact.key,
        "phase": "read",
        "step": 1,
        "steps": 4,
        "fraction": 0.25,
    }
    for age, state in ((timedelta(seconds=5), State.RUNNING), (timedelta(minutes=5), State.SUSPENDED)):
        moment = (datetime.now(UTC) - age).isoformat()
        reporter.gatherer.store.write(path, json.dumps(news | {"updatedAt": moment}).encode())
        row = reporter.gatherer.gather(None).trenchcoat.status.stages[0]
        assert (row.state, row.progress) == (state, "25%")


def test_it_stands_in_a_real_s3_store(
    make_spec, tmp_path: Path, minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {
        "endpoint": minio_server.endpoint,
        "bucket": BUCKET,
        "credentialsSecretRef": {"name": "minio"},
    }
    spec = make_spec(**SETTINGS | {"store": where})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    file = write_spec(spec, tmp_path)
    assert main(["tokenize", "--spec", str(file)]) == ExitCode.OK
    reporter = open_reporter(Trenchcoat.from_yaml(file), file, None)
    assert isinstance(reporter.gatherer.store, S3Store)
    page = reporter.gatherer.store.read(reporter.place.page_path).decode()
    assert f"s3://{BUCKET}" in page and SECRET_KEY not in page
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(file)]) == ExitCode.OK
    assert (tmp_path / f"{reporter.gatherer.trenchcoat.metadata.name}-report.html").exists()


def test_a_former_run_that_cannot_be_read_is_left_out(
    make_spec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = place(make_spec(**SETTINGS), tmp_path)
    former = f"{reporter.gatherer.trenchcoat.spec.store.prefix}/reports/other/0123456789abcdef/run.json"
    reporter.gatherer.store.write(former, b'{"of": "another version"}')
    for _ in range(2):
        reporter.write()
    assert [record.args[0] for record in caplog.records if "another version" in record.message] == [former]
    assert reporter.page_file is not None and reporter.page_file.exists()
