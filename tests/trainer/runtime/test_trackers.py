"""Trackers by their own clients, read by their own programs: `make test-tracking` installs both."""

from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.history import run_id
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.program import run_program
from trenchcoat_trainer.runtime.stop import StopRequest

from tests.tracker_servers import mlflow_server, read_events
from tests.trainer.helpers.killing import write_spec

for client in ("tensorboardX", "mlflow"):
    pytest.importorskip(client, reason=f"{client} is not installed: make test-tracking")
from mlflow.tracking import MlflowClient  # noqa: E402

pytestmark = pytest.mark.slow


def run(stage: Stage, file: Path, folder: Path, cria: int | None = None) -> None:
    code = run_program(stage, file, cria=cria, folder=folder, stop=StopRequest())
    assert code == ExitCode.OK


def test_losses_reach_tensorboard_and_mlflow_and_another_attempt_goes_on(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_server(tmp_path) as url:
        spec = make_spec(
            data={"tokens": 20 * 64},
            layersPerCria=5,
            attention={"form": "lolcats", "window": 8, "featureDim": 4},
            tracking={"tensorBoard": True, "mlflow": {"uri": url, "experiment": "students"}},
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
        (bucket / artifact.manifest_path).unlink()
        run(Stage.CRIA, file, store, 0)
        (again,) = client.search_runs([experiment.experiment_id], f"tags.`trenchcoat.key` = '{artifact.key}'")
        assert again.info.run_id == found.info.run_id and again.info.status == "FINISHED"
    assert "was not told" not in caplog.text

    # Without its server a stage comes to its end all the same, and says so.
    (bucket / artifact.manifest_path).unlink()
    run(Stage.CRIA, file, store, 0)
    assert "MLflow was not told" in caplog.text
    assert (bucket / artifact.manifest_path).exists()
