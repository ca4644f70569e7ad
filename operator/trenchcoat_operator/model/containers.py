"""What the containers of a pod tell: the stage's own by its name, and those that others put beside it.

Sidecars of a mesh, a vault or a log shipper come from admission plugins: as ordinary containers, or as init
containers that are restarted (native sidecars). None of their exit codes is the stage's.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trenchcoat_operator.model.observed import ChildKind

Object = dict[str, Any]

_JUST_STARTING = {"ContainerCreating", "PodInitializing", None, ""}


@dataclass(frozen=True, slots=True)
class Containers:
    """The containers of one pod, as the kubelet tells of them."""

    begun: bool = False
    """Whether the stage's own runs or has run."""
    end: Object = field(default_factory=dict)
    """How the stage's own ended, or an init container that failed before it; empty while none did."""
    end_of: str = ""
    """Name of that init container."""
    waiting: Object = field(default_factory=dict)
    """Why a container does not run, if somebody must mend it."""
    waiting_name: str = ""
    initializing: Object = field(default_factory=dict)
    """The init container that runs and has to end before the others begin."""
    initializing_name: str = ""
    beside: tuple[str, ...] = ()
    """Names of others than the stage's that run or are yet to."""


def read(body: Object) -> Containers:
    """The containers of a pod."""
    name = stage_container(body)
    first: list[Object] = (body.get("status") or {}).get("initContainerStatuses") or []
    native = _native_sidecars(body)
    own: Object = next((_state(item) for item in _statuses(body) if _name(item) == name), {})
    init = [item for item in first if _name(item) not in native]
    failed: Object = next(
        (item for item in init if (_state(item).get("terminated") or {}).get("exitCode")), {}
    )
    running: Object = next((item for item in init if _state(item).get("running")), {})
    waiting: Object = next((item for item in [*first, *_statuses(body)] if _kept_off(item)), {})
    others = [item for item in first if _name(item) in native]
    others += [item for item in _statuses(body) if _name(item) != name]
    return Containers(
        begun=bool(own.get("running") or own.get("terminated")),
        end=own.get("terminated") or _state(failed).get("terminated") or {},
        end_of="" if own.get("terminated") else _name(failed),
        waiting=_kept_off(waiting),
        waiting_name=_name(waiting),
        initializing=_state(running).get("running") or {},
        initializing_name=_name(running),
        beside=tuple(_name(item) for item in others if not _state(item).get("terminated")),
    )


def _statuses(body: Object) -> list[Object]:
    return (body.get("status") or {}).get("containerStatuses") or []


def _native_sidecars(body: Object) -> set[str]:
    init = (body.get("spec") or {}).get("initContainers") or []
    return {_name(item) for item in init if item.get("restartPolicy") == "Always"}


def _name(item: Object) -> str:
    return str(item.get("name") or "")


def _state(item: Object) -> Object:
    return item.get("state") or {}


def _kept_off(item: Object) -> Object:
    """Why a container does not run, and how it ended the last time; empty while it merely starts."""
    waiting: Object = _state(item).get("waiting") or {}
    if waiting.get("reason") in _JUST_STARTING:
        return {}
    return {**waiting, "last": (item.get("lastState") or {}).get("terminated") or {}}


def stage_container(body: Object) -> str:
    """Name of the container of a pod that runs the stage; a Job's unless a PyTorchJob controls the pod."""
    for reference in body["metadata"].get("ownerReferences") or []:
        if reference.get("controller") and reference.get("kind") in set(ChildKind):
            return ChildKind(reference["kind"]).container
    return ChildKind.JOB.container


def begun_and_ended(statuses: list[Object]) -> tuple[datetime | None, datetime | None]:
    """When the first of some containers began, and the last ended, once all have."""
    begun, ended = [], []
    for item in statuses:
        for state in _state(item).values():
            if state and state.get("startedAt"):
                begun.append(datetime.fromisoformat(state["startedAt"]))
        finished = (_state(item).get("terminated") or {}).get("finishedAt")
        if finished:
            ended.append(datetime.fromisoformat(finished))
    return min(begun, default=None), max(ended, default=None) if len(ended) == len(statuses) else None
