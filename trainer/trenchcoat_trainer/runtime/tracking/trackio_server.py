"""A server of trackio: a run for each artifact, which another attempt at it goes on with."""

import math
import uuid
from typing import Any

from httpx import HTTPStatusError
from trackio.remote_client import RemoteClient
from trenchcoat_api.constants import ENV_TRACKIO_TOKEN
from trenchcoat_api.spec import Trackio as Settings

from trenchcoat_trainer.runtime.tracking.point import Point, Work
from trenchcoat_trainer.store.credentials import read_secret

_MOST_WAITING = 2000
"""Points that are kept for a server that does not answer: the latest."""
_AT_ONCE = 200


class TrackioError(Exception):
    """The server takes nothing, and why."""


class Trackio:
    """Tells a server by the client that trackio's own runs use.

    Not by such a run itself: it keeps what was not taken in a file and its failures to itself, and sends the
    environment's token of the hub there, to have a name for who runs it
    (findings/trackio-tells-the-hub-of-self-hosted-runs.sh).
    """

    name = "trackio"

    def __init__(self, settings: Settings, work: Work) -> None:
        """Nothing is asked of the server before the first flush."""
        self._settings, self._work = settings, work
        self._client: RemoteClient | None = None
        self._waiting: list[dict[str, Any]] = []

    def record(self, point: Point) -> None:
        """Keep a point until the next flush."""
        values = {name: value for name, value in point.values.items() if math.isfinite(value)}
        if not values:
            return
        self._waiting.append(
            {
                "project": self._settings.project,
                "run": f"{self._work.trenchcoat} {self._work.artifact}",
                "run_id": self._work.key,
                "metrics": values,
                "step": point.step,
                "log_id": uuid.uuid4().hex,  # sent again, it counts once
            }
        )
        del self._waiting[:-_MOST_WAITING]

    def flush(self) -> None:
        """Send what waits."""
        if not self._waiting:
            return
        client = self._client or self._connect()
        while batch := self._waiting[:_AT_ONCE]:
            batch[0] = batch[0] | {"config": self._config()}
            try:
                client.predict(api_name="/bulk_log", logs=batch, hf_token=None)
            except HTTPStatusError as error:
                raise TrackioError(f"{error}: {error.response.text[:500]}") from error
            self._client = client
            del self._waiting[: len(batch)]

    def close(self, *, complete: bool) -> None:
        """Send the rest; whether the artifact is complete has no place on the server."""
        self.flush()

    def _connect(self) -> RemoteClient:
        token = read_secret(ENV_TRACKIO_TOKEN)
        if token is None:
            raise TrackioError(f"{ENV_TRACKIO_TOKEN} is not set: put the server's write token into it")
        return RemoteClient(self._settings.uri, write_token=token)

    def _config(self) -> dict[str, str]:
        """What the run's page tells beside its name; `_Group` is trackio's name of what belongs together."""
        work = self._work
        return {
            "_Group": f"{work.trenchcoat} {work.run}",
            "trenchcoat.name": work.trenchcoat,
            "trenchcoat.run": work.run,
            "trenchcoat.stage": work.stage,
            "trenchcoat.key": work.key,
        }
