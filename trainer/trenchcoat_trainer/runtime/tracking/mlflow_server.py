"""A tracking server of MLflow: a run for each artifact, which another attempt at it goes on with."""

import math

from mlflow.entities import Metric, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from trenchcoat_api.spec import MLflow as Settings

from trenchcoat_trainer.runtime.tracking.point import Point, Work

_KEY, _RUN = "trenchcoat.key", "trenchcoat.run"
_MOST_WAITING = 20_000
"""Numbers that are kept for a server that does not answer: the latest."""
_THERE = "RESOURCE_ALREADY_EXISTS"


class MLflow:
    """Tells a server by MLflow's client, which finds its credentials in the environment."""

    name = "MLflow"

    def __init__(self, settings: Settings, work: Work) -> None:
        """Nothing is asked of the server before the first point."""
        self._client = MlflowClient(tracking_uri=settings.uri)
        self._experiment, self._work = settings.experiment, work
        self._run = ""
        self._waiting: list[Metric] = []

    def record(self, point: Point) -> None:
        """Keep a point until the next flush."""
        moment = int(point.seconds * 1000)
        self._waiting += [
            Metric(name, value, moment, point.step)
            for name, value in point.values.items()
            if math.isfinite(value)
        ]
        del self._waiting[:-_MOST_WAITING]

    def flush(self) -> None:
        """Send what waits."""
        if not self._run:
            self._run = self._open()
        batch = self._waiting[:1000]  # the most that the server takes at once
        while batch:
            self._client.log_batch(self._run, metrics=batch)
            del self._waiting[: len(batch)]
            batch = self._waiting[:1000]

    def close(self, *, complete: bool) -> None:
        """Send the rest, and say how the attempt ended."""
        self.flush()
        status = RunStatus.FINISHED if complete else RunStatus.KILLED
        self._client.set_terminated(self._run, RunStatus.to_string(status))

    def _open(self) -> str:
        """The run of this artifact's earlier attempt, or a new one."""
        experiment = self._experiment_id()
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{self._work.key}'", max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, RunStatus.to_string(RunStatus.RUNNING))
            return str(run)
        work = self._work
        tags = {
            _KEY: work.key,
            _RUN: work.run,
            "trenchcoat.name": work.trenchcoat,
            "trenchcoat.stage": work.stage,
        }
        made = self._client.create_run(experiment, tags=tags, run_name=f"{work.trenchcoat} {work.artifact}")
        return str(made.info.run_id)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(self._experiment))
        except MlflowException as error:
            if error.error_code != _THERE:
                raise
        there = self._client.get_experiment_by_name(self._experiment)
        if there is None:
            raise MlflowException(f"experiment {self._experiment} is there and cannot be read")
        return str(there.experiment_id)
