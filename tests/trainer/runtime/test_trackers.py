"""Trackers by their own clients, read by their own programs: `make test-tracking` installs both."""

from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.history import run_id
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Trackio as TrackioSettings
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.program import run_program
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.tracking.point import Point, Work

from tests.tracker_servers import mlflow_server, read_events, trackio_server
from tests.trainer.helpers.killing import write_spec

for client in ("tensorboardX", "mlflow", "trackio"):
    pytest.importorskip(client, reason=f"{client} is not installed: make test-tracking")
from mlflow.tracking import MlflowClient  # noqa: E402
from trackio.remote_client import RemoteClient  # noqa: E402
from trenchcoat_trainer.runtime.tracking.trackio_server import Trackio, TrackioError  # noqa: E402

TOKEN = "a-write-token-of-trackio"
pytestmark = pytest.mark.slow


def run(stage: Stage, file: Path, folder: Path, cria: int | None = None) -> None:
    code = run_program(stage, file, cria=cria, folder=folder, stop=StopRequest())
    assert code == ExitCode.OK


def trackio_runs(reader: RemoteClient, key: str) -> list[dict[str, str]]:
    runs = reader.predict(api_name="/get_runs_for_project", project="students")
    return [run for run in runs if run["id"] == key]


def test_losses_reach_all_trackers_and_another_attempt_goes_on(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", TOKEN)
    with mlflow_server(tmp_path) as url, trackio_server(tmp_path, TOKEN) as trackio_url:
        spec = make_spec(
            data={"tokens": 20 * 64},
            layersPerCria=5,
            attention={"form": "lolcats", "window": 8, "featureDim": 4},
            tracking={
                "tensorBoard": True,
                "mlflow": {"uri": url, "experiment": "students"},
                "trackio": {
                    "uri": trackio_url,
                    "project": "students",
                    "tokenSecretRef": {"name": "trackio", "key": "token"},
                },
            },
        )
        file, store = write_spec(spec, tmp_path), tmp_path / "store"
        for stage in (Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD):
            run(stage, file, store)
        run(Stage.CRIA, file, store, 0)
        artifact = Artifacts(spec).cria(CriaRange(0, 0, 4))
        bucket = store / spec.store.bucket
        manifest = Manifest.model_validate_json((bucket / artifact.manifest_path).read_text())
        final = {name: float(loss) for name, loss in manifest.facts.losses.items()}
        assert final

        # TensorBoard's own reader finds them in the store.
        name = Trenchcoat.from_yaml(file).metadata.name
        events = bucket / spec.store.prefix / "tensorboard" / name / run_id(spec) / artifact.name
        told = read_events(events)
        for loss, value in final.items():
            assert told[f"final/{loss}"] == [[0, pytest.approx(value, rel=1e-5)]]
        assert told["transfer/fraction"]

        # MLflow's server has a run of the Cria, which a second attempt goes on with.
        client = MlflowClient(tracking_uri=url)
        experiment = client.get_experiment_by_name("students")
        (found,) = client.search_runs([experiment.experiment_id], f"tags.`trenchcoat.key` = '{artifact.key}'")
        assert found.info.status == "FINISHED" and found.info.run_name == f"{name} {artifact.name}"
        assert {f"final/{loss}": value for loss, value in final.items()}.items() <= found.data.metrics.items()
        # So has trackio's.
        reader = RemoteClient(trackio_url)
        (known,) = trackio_runs(reader, artifact.key)
        assert known["name"] == f"{name} {artifact.name}"
        summary = reader.predict(api_name="/get_run_summary", project="students", run_id=artifact.key)
        assert summary["config"]["trenchcoat.stage"] == "cria"
        assert summary["config"]["_Group"] == f"{name} {run_id(spec)}"
        rows = reader.predict(api_name="/get_logs", project="students", run_id=artifact.key)
        (last,) = (row for row in rows if any(value.startswith("final/") for value in row))
        assert {f"final/{loss}": value for loss, value in final.items()}.items() <= last.items()

        (bucket / artifact.manifest_path).unlink()
        run(Stage.CRIA, file, store, 0)
        assert trackio_runs(reader, artifact.key) == [known]
        longer = reader.predict(api_name="/get_logs", project="students", run_id=artifact.key)
        assert len(longer) > len(rows)
        (again,) = client.search_runs([experiment.experiment_id], f"tags.`trenchcoat.key` = '{artifact.key}'")
        assert again.info.run_id == found.info.run_id and again.info.status == "FINISHED"
    assert "was not told" not in caplog.text

    # Without its server a stage comes to its end all the same, and says so.
    (bucket / artifact.manifest_path).unlink()
    run(Stage.CRIA, file, store, 0)
    assert "MLflow was not told" in caplog.text and "trackio was not told: ConnectionError" in caplog.text
    assert TOKEN not in caplog.text
    assert (bucket / artifact.manifest_path).exists()


def test_trackio_takes_nothing_without_its_token_and_then_all_of_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(trenchcoat="tiny", run="1", artifact="cria-03", stage="cria", key="k" * 16)
    with trackio_server(tmp_path, TOKEN) as url:
        settings = TrackioSettings.model_validate(
            {"uri": url, "project": "students", "tokenSecretRef": {"name": "trackio", "key": "token"}}
        )
        tracker = Trackio(settings, work)
        for step in range(450):  # more than one request takes
            tracker.record(Point(step, 0.0, {"transfer/loss": 1 / (step + 1), "transfer/bad": float("nan")}))
        monkeypatch.delenv("TRACKIO_WRITE_TOKEN", raising=False)
        with pytest.raises(TrackioError, match="TRACKIO_WRITE_TOKEN is not set"):
            tracker.flush()
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "another")
        with pytest.raises(TrackioError, match="write_token is required"):
            tracker.flush()
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", f"{TOKEN}\n")
        tracker.flush()
        tracker.close(complete=True)
        rows = RemoteClient(url).predict(api_name="/get_logs", project="students", run_id=work.key)
    assert [row["step"] for row in rows] == list(range(450))
    assert rows[9]["transfer/loss"] == pytest.approx(0.1) and "transfer/bad" not in rows[9]
