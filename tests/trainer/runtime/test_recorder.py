"""Trackers are told in a thread of their own: whatever becomes of them, a stage goes on."""

import importlib.util
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Facts, Progress
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.program import run_program
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.tracking import recorder
from trenchcoat_trainer.runtime.tracking.point import Point, of_progress
from trenchcoat_trainer.runtime.tracking.recorder import Recorder

from tests.trainer.helpers.killing import write_spec

SECRET = "a-token-of-a-tracker"


def progress(step: int) -> Progress:
    return Progress(
        stage=Stage.CRIA,
        key="k",
        phase="transfer",
        step=step,
        steps=9,
        fraction=step / 9,
        losses={"transfer": f"{1 / step:.6g}"},
        tokens_per_second=5.0,
        updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class Told:
    """Keeps what it is told; may fail, or not answer."""

    def __init__(self, name: str, fault: str = "", answers: threading.Event | None = None) -> None:
        self.name, self._fault, self._answers = name, fault, answers
        self.points: list[Point] = []
        self.complete: bool | None = None

    def record(self, point: Point) -> None:
        if self._answers is not None:
            self._answers.wait(300)
        if self._fault:
            raise RuntimeError(self._fault)
        self.points.append(point)

    def flush(self) -> None:
        pass

    def close(self, *, complete: bool) -> None:
        self.complete = complete


def test_a_report_is_a_point_of_its_phase() -> None:
    point = of_progress(progress(3))
    assert point.step == 3 and point.seconds == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert point.values == {
        "transfer/transfer": pytest.approx(1 / 3, rel=1e-5),
        "transfer/fraction": pytest.approx(1 / 3),
        "transfer/tokens_per_second": 5.0,
    }


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_TOKEN", "TRACKIO_WRITE_TOKEN"])
def test_a_tracker_that_fails_is_told_of_without_secrets_and_leaves_the_others_alone(
    variable: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    good, bad = Told("good"), Told("bad", fault=f"refused {SECRET}")
    with caplog.at_level(logging.WARNING):
        telling = Recorder([bad, good])
        for step in (1, 2):
            telling.tell(progress(step))
        telling.close(Facts(losses={"transfer": "0.5"}))
    assert [point.step for point in good.points] == [1, 2, 0] and good.complete is True
    assert good.points[-1].values == {"final/transfer": 0.5}
    assert "bad was not told: RuntimeError: refused ***" in caplog.text and SECRET not in caplog.text


def test_a_tracker_that_does_not_answer_holds_up_no_step(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(recorder, "MOST_WAITING", 3)
    answers = threading.Event()
    telling = Recorder([slow := Told("slow", answers=answers)])
    for step in range(1, 9):
        telling.tell(progress(step))
    telling.close(None)
    assert slow.points == [] and "points are dropped" in caplog.text
    assert " not told" in caplog.text
    answers.set()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="it is installed here")
def test_what_is_not_installed_is_named_with_what_brings_it(
    make_spec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(
        tracking={
            "tensorBoard": True,
            "mlflow": {"uri": "http://mlflow:5000"},
            "trackio": {"uri": "http://trackio:7860", "tokenSecretRef": {"name": "trackio", "key": "token"}},
        }
    )
    file = write_spec(spec, tmp_path)
    code = run_program(Stage.TOKENIZE, file, cria=None, folder=tmp_path / "store", stop=StopRequest())
    assert code == ExitCode.BAD_INPUT
    assert (
        "spec.tracking needs tensorboardX and mlflow and trackio" in caplog.text
        and "trainer/tracking.Dockerfile" in caplog.text
    )
