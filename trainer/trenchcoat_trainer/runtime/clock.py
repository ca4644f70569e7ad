"""How long an artifact has been computed on, over all attempts."""

import json
import time
from datetime import UTC, datetime

from trenchcoat_api.artifacts import Artifact

from trenchcoat_trainer.errors import NotFoundError
from trenchcoat_trainer.runtime.paces import PaceKeeper
from trenchcoat_trainer.store import Store


class Clock:
    """Counts on from where the last attempt left off."""

    def __init__(self, store: Store, artifact: Artifact, ranks: int = 1) -> None:
        """`ranks` is how many processes compute together."""
        self.ranks = ranks
        self.paces = PaceKeeper()
        """How fast its phases go."""
        self._store = store
        self._path = artifact.checkpoint_prefix + "clock.json"
        self._began = time.monotonic()
        self._before = 0.0
        self.started_at = datetime.now(UTC)
        try:
            saved = json.loads(store.read(self._path))
        except NotFoundError:
            return  # the first attempt, or another rank is done with the artifact
        self.started_at = datetime.fromisoformat(saved["started_at"])
        self._before = float(saved["seconds"])
        self.paces.restore(saved.get("paces", {}))  # an earlier version kept none

    @property
    def attempt_seconds(self) -> float:
        """Seconds of this attempt."""
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        """Seconds of all attempts."""
        return self._before + self.attempt_seconds

    def save(self) -> None:
        """Keep the count for the next attempt."""
        state = {
            "started_at": self.started_at.isoformat(),
            "seconds": self.seconds,
            "paces": self.paces.state(),
        }
        self._store.write(self._path, json.dumps(state).encode())
