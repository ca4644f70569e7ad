"""What the cluster knows of a run and the artifacts do not tell: who waited for what, and all tries.

The operator leaves it beside the run's report, whose pages are written by the stages.
"""

import hashlib

from pydantic import Field

from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.base import Camel
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.status import AttemptStatus, TrenchcoatStatus, WaitingReason, WaitStatus

REPORTS = "reports/"
HISTORY = "history.json"


class Seen(Camel):
    """What was seen of one artifact's work; the fields are those of `Work`."""

    attempt: int = Field(default=0, description="Number of the latest try.")
    attempts: list[AttemptStatus] = Field(default_factory=list, description="The latest tries.")
    last_failure: str = Field(default="", description="How the latest failed try ended.")
    waiting_reason: WaitingReason | None = Field(default=None, description="What it waits for.")
    waiting_since: str = Field(default="", description="Since when, RFC 3339.")
    waiting_place: str = Field(default="", description="Its place in the queue.")
    waits: list[WaitStatus] = Field(default_factory=list, description="Its latest waits.")
    message: str = Field(default="", description="Why it waits.")
    gpu_seconds: str = Field(default="", description="GPU seconds held by all tries.")


class History(Camel):
    """Of a whole run."""

    rows: dict[str, Seen] = Field(default_factory=dict, description="By content key.")

    def turns(self) -> object:
        """What of it is worth writing anew: who waits, and which tries there are, but not every second."""
        return {
            key: (
                seen.waiting_reason,
                [(item.number, item.outcome) for item in seen.attempts],
                [(item.reason, item.since, item.until) for item in seen.waits],
            )
            for key, seen in self.rows.items()
        }


def history(status: TrenchcoatStatus) -> History:
    """What a status tells that the artifacts do not."""
    rows = [row for row in (*status.stages, *status.crias) if row.key and (row.attempts or row.waits)]
    return History(
        rows={
            row.key: Seen(
                attempt=row.attempt,
                attempts=row.attempts,
                last_failure=row.last_failure,
                waiting_reason=row.waiting_reason,
                waiting_since=row.waiting_since,
                waiting_place=row.waiting_place,
                waits=row.waits,
                message=row.message if row.waiting_reason else "",
                gpu_seconds=row.gpu_seconds,
            )
            for row in rows
        }
    )


def run_id(spec: TrenchcoatSpec) -> str:
    """16 hex digits that are the same exactly where two specs compute the same."""
    artifacts, first = Artifacts(spec), [CriaRange(0, 0, 0)]
    keys = [artifact.key for artifact in artifacts.all(first)]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def report_prefix(spec: TrenchcoatSpec, name: str) -> str:
    """The folder of a run's report within the bucket, ending in a slash.

    Args:
        spec: What the run computes.
        name: Of the Trenchcoat.
    """
    return f"{spec.store.prefix}/{REPORTS}{name}/{run_id(spec)}/"
