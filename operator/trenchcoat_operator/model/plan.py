"""What a decision comes to: actions on children, the status to write, events to tell."""

from dataclasses import dataclass
from typing import Any

from trenchcoat_api.artifacts import Artifact, Manifest
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.model.observed import ChildKind

Object = dict[str, Any]
"""A Kubernetes object as it stands in YAML."""

BESIDE = frozenset({"ConfigMap", "Service"})
"""Kinds of objects that the pods of children need beside them: nothing runs under them."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Make an object that is not there."""

    manifest: Object

    @property
    def name(self) -> str:
        """Name of the object."""
        name: str = self.manifest["metadata"]["name"]
        return name

    @property
    def child_kind(self) -> ChildKind | None:
        """What it is, if it runs a stage."""
        kind = self.manifest["kind"]
        return ChildKind(kind) if kind in set(ChildKind) else None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an object and wait for its pods; they get SIGTERM and write a checkpoint."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Write the verdict on a failed child onto it, so that it outlives the pods."""

    kind: str
    name: str
    outcome: str
    message: str
    saved: float | None = None
    """Share of its stage that its latest checkpoint holds, if it saved one."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Take away a child's time to live: it is the record of how its try ended."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Have a child's controller end its pods and call it failed; they get SIGTERM and write a checkpoint."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Have the Trenchcoat wait for its artifacts' deletion, or no longer."""

    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Condemn:
    """Take away an artifact's manifest, so that nobody begins to use it; its objects stay for now."""

    artifact: Artifact
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Restore:
    """Give a condemned artifact its manifest back: somebody came to use it meanwhile."""

    artifact: Artifact
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete an artifact's objects, as many as a few seconds allow."""

    artifact: Artifact
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the last trace of an artifact that was deleted."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class ForcePod:
    """Declare a pod failed whose node does not answer, and remove it, so that its work goes on elsewhere.

    Should the pod still run, two do the same work for a while: they write the same objects, each as a whole.
    """

    name: str
    node: str


StoreAction = Condemn | Restore | Purge | Forget
Action = Apply | Delete | Keep | Stop | SetFinalizer | RecordOutcome | ForcePod | StoreAction


@dataclass(frozen=True, slots=True)
class Event:
    """One transition, for `kubectl describe`."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str
    identity: str
    """Equal for the same transition seen twice, so that it is told once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to be done after one look."""

    actions: tuple[Action, ...]
    status: TrenchcoatStatus
    events: tuple[Event, ...]
    look_again: float | None
    """Seconds until the next look; none leaves it to events and the resync."""
    needs_surroundings: bool = False
    """It depends on the other Trenchcoats or the cluster's GPUs, which the look left out: look again, with
    them."""
    waits_for_gpus: bool = False
    """Something would start if more GPUs were free."""
    due: tuple[str, ...] = ()
    """Other Trenchcoats for which GPUs are free now, as namespace/name: they should look."""
