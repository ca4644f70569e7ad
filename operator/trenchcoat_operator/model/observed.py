"""One look at the cluster and the store: everything that a decision about one Trenchcoat may rest on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from trenchcoat_api.artifacts import Deletion, Manifest, Progress
from trenchcoat_api.stages import Stage

from trenchcoat_operator.model.capacity import Capacity


class ChildKind(StrEnum):
    """Kinds of objects that run a stage."""

    JOB = "Job"
    PYTORCH_JOB = "PyTorchJob"

    @property
    def container(self) -> str:
        """Name of the container that runs the stage; the training-operator insists on its own."""
        return "stage" if self is ChildKind.JOB else "pytorch"


class ChildPhase(StrEnum):
    """Where a child stands, by its own conditions."""

    ACTIVE = "Active"
    """Neither succeeded nor failed."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod of a child."""

    name: str
    phase: str
    node: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    scheduled_at: datetime | None = None
    finished_at: datetime | None = None
    """When the last of its containers ended, once all have."""
    extended: Mapping[str, int] = field(default_factory=dict)
    """Extended resources that it holds while it runs, such as nvidia.com/gpu."""
    unschedulable: str = ""
    """What the scheduler said, while it finds no node."""
    unschedulable_since: datetime | None = None
    autoscaler: str = ""
    """What an autoscaler said of it meanwhile."""
    gates: tuple[str, ...] = ()
    """Names of its scheduling gates: until they are lifted the scheduler does not look at it."""
    waiting_reason: str = ""
    """Why a container does not run, such as ImagePullBackOff."""
    waiting_message: str = ""
    waiting_container: str = ""
    """Name of that container; empty for the stage's own."""
    initializing: str = ""
    """Name of the init container that runs, and that the stage waits for."""
    initializing_since: datetime | None = None
    exit_code: int | None = None
    """Of the stage's own container, or of an init container that failed before it; none while it runs."""
    exit_reason: str = ""
    """Reason of that container, such as OOMKilled."""
    exit_message: str = ""
    exit_of: str = ""
    """Name of that init container; empty for the stage's own."""
    ended_at: datetime | None = None
    """When that container ended."""
    beside: tuple[str, ...] = ()
    """Names of containers beside the stage's that have not ended."""
    disrupted: bool = False
    """The cluster ended it: preemption, eviction, a lost node."""
    reason: str = ""
    """The pod's own reason, such as Evicted."""
    message: str = ""
    """What the kubelet or a controller said with it."""
    told_at: datetime | None = None
    """When it was told to end, once it was deleted: a whole second."""
    gone_by: datetime | None = None
    """When it should have ended and be gone, once it was deleted."""

    @property
    def waits_for_node(self) -> bool:
        """Whether the scheduler finds no node for it."""
        return bool(self.unschedulable) and self.phase == "Pending" and not self.gates

    @property
    def over(self) -> bool:
        """Whether all of its containers have ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def outstays_its_stage(self) -> bool:
        """Whether other containers go on though its stage's own has ended, and nobody told it to end."""
        return self.ended_at is not None and not self.exit_of and not self.over and self.gone_by is None


@dataclass(frozen=True, slots=True)
class Queued:
    """What Kueue says of a child that it does not let run, or takes back."""

    message: str
    evicted: bool = False
    """Whether Kueue has taken back what it had let run: of its pods that may be heard before of itself."""
    mend: bool = False
    """Whether it waits for a person rather than for quota: its queue is missing or stopped, say."""
    place: str = ""
    """Among what waits in its LocalQueue, such as 2 of 7; empty where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One Job or PyTorchJob that carries the Trenchcoat's label."""

    kind: ChildKind
    name: str
    stage: Stage
    cria: int | None
    gang: bool = False
    """Whether its pods work together, so that none goes on without the others."""
    key: str
    attempt: int
    spec_name: str
    """The ConfigMap that its pods read."""
    template: str
    """Hash of the pod template that it was made with."""
    expects_nodes: bool = False
    """Whether it was made without free GPUs, so that an autoscaler sees its pods."""
    owned: bool
    """By this very Trenchcoat, not by a deleted one of the same name."""
    phase: ChildPhase = ChildPhase.ACTIVE
    terminating: bool = False
    suspended: bool = False
    expires: bool = False
    """Whether its controller deletes it some time after its end: somebody else set a time to live."""
    kept: bool = False
    """Whether the operator took that away once."""
    queue: str = ""
    """The LocalQueue of Kueue's that it is labelled with, by whomever."""
    queued: Queued | None = None
    """None where Kueue has made no Workload for it, or its pods are at work."""
    stopped: bool = False
    """Whether the operator had it stopped: its controller ends its pods."""
    created_at: datetime | None = None
    finished_at: datetime | None = None
    failing_at: datetime | None = None
    """When its controller found that it had failed: only then it tells the pods that are left to end."""
    reason: str = ""
    """Of the condition that it failed with."""
    message: str = ""
    outcome: str = ""
    """The recorded class of its failure."""
    outcome_message: str = ""
    saved: float | None = None
    """Recorded with it: the share of its stage that its latest checkpoint held; none where it saved none."""
    pods: tuple[Pod, ...] = ()
    refusal: str = ""
    """What the API server said to its controller, which it lets make no pod."""
    room_by: datetime | None = None
    """When pods of others should be gone that were told to end and hold what its pods wait for."""

    @property
    def active(self) -> bool:
        """Whether it holds, or may come to hold, resources of the cluster."""
        return self.phase is ChildPhase.ACTIVE

    @property
    def running(self) -> bool:
        """Whether a pod of it runs."""
        return any(pod.phase == "Running" for pod in self.pods)

    @property
    def waiting(self) -> bool:
        """Whether it has yet to begin, or to go on: none of its pods runs, nor is the end of all it has."""
        return not self.running and (not self.pods or any(pod.phase == "Pending" for pod in self.pods))

    @property
    def stage_succeeded(self) -> bool:
        """Whether the stage's own container ended well in all of its pods."""
        return bool(self.pods) and all(pod.exit_code == 0 for pod in self.pods)

    @property
    def holding(self) -> bool:
        """Whether it holds, or will hold, GPUs: its own conditions come a second after its pods' end."""
        return self.active and not (self.pods and all(pod.phase == "Succeeded" for pod in self.pods))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person must mend."""

    reason: str
    """One CamelCase word, for a condition."""
    message: str
    """The field at fault and the remedy."""


@dataclass(frozen=True, slots=True)
class StoreView:
    """What was read in the store."""

    problem: Problem | None = None
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    """Of complete artifacts, by content key."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    """Of artifacts that are being made, by content key."""
    deletions: Mapping[str, Deletion] = field(default_factory=dict)
    """Of artifacts without a manifest that the operator deleted, by content key."""
    remains: frozenset[str] = frozenset()
    """Content keys of which any object is there; looked at only for a Trenchcoat that is being deleted."""

    @property
    def told(self) -> Mapping[str, Manifest]:
        """Manifests, those of deleted artifacts included: facts stay true."""
        gone = {key: item.manifest for key, item in self.deletions.items() if item.manifest is not None}
        return {**gone, **self.manifests}


@dataclass(frozen=True, slots=True)
class Peers:
    """The other Trenchcoats with the same store, by the content keys of artifacts; values are their names."""

    at_work: Mapping[str, str] = field(default_factory=dict)
    """Artifacts that they have a Job for."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Artifacts that their specs ask for."""
    keepers: Mapping[str, str] = field(default_factory=dict)
    """Those of them that may not be deleted yet: a stage still needs them, or spec.retention keeps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything seen in one look."""

    children: tuple[Child, ...] = ()
    config_maps: frozenset[str] = frozenset()
    """Names of the ConfigMaps with specs."""
    services: frozenset[str] = frozenset()
    """Names of the Services by which gangs find one another."""
    store: StoreView = field(default_factory=StoreView)
    capacity: Capacity | None = None
    """None unless it was looked at, which only a plan that asks for it needs."""
    peers: Peers | None = None
    """Likewise."""
    training_operator: bool = True
    """Whether the cluster knows PyTorchJobs."""
    undeleted: Problem | None = None
    """Why the store let nothing be deleted a while ago; it is not asked again yet."""
    kueue: bool = True
    """Whether the cluster knows Workloads; not asked while no child waits for Kueue."""
