"""Where one work stands, as a value."""

from dataclasses import dataclass
from datetime import datetime

from trenchcoat_api.artifacts import Deletion, Manifest
from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.failures import Outcome
from trenchcoat_operator.works.graph import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Where one work stands."""

    work: Work
    state: State
    message: str = ""
    waiting: WaitingReason | None = None
    tries: tuple[Child, ...] = ()
    """Its children, the earliest first."""
    attempt: int = 0
    """Number of the latest try."""
    manifest: Manifest | None = None
    last_outcome: Outcome | None = None
    """How the latest failed try ended."""
    startable: bool = False
    """A new try may be made now, GPUs permitting."""
    problem: Problem | None = None
    """What a person must mend before it goes on."""
    outcomes: tuple[tuple[Child, Outcome], ...] = ()
    """How its failed tries ended."""
    unrecorded: tuple[tuple[Child, Outcome], ...] = ()
    """Failures whose verdict does not stand on the child yet."""
    look_at: datetime | None = None
    """When time alone will change this."""
    deleted: Deletion | None = None
    """What was noted when the operator deleted it, where that is why it has no manifest."""

    @property
    def latest(self) -> Child | None:
        """The latest try."""
        return self.tries[-1] if self.tries else None
