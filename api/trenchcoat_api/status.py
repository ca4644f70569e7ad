"""The status of a Trenchcoat, field for field as `kubectl get -o yaml` shows it.

Conditions follow metav1.Condition. Loss, progress and times are strings: the Kubernetes API has no floats.
"""

from enum import StrEnum

from pydantic import Field

from trenchcoat_api.artifacts import DataFacts, ModelFacts
from trenchcoat_api.base import Camel
from trenchcoat_api.presets import Preset, kept_preset
from trenchcoat_api.results import Evaluation, Perplexity
from trenchcoat_api.selection import Selection

MAX_SUPERSEDED = 256
"""Artifacts of former specs that are remembered; those superseded first are forgotten, and stay stored."""


class ConditionType(StrEnum):
    """What the conditions mean; each is True, False or Unknown."""

    ACCEPTED = "Accepted"
    """The spec, the store, the model and the text were checked and can work."""
    ACTIVATIONS_READY = "ActivationsReady"
    """Hidden states at every Cria boundary are in the store."""
    SHARDS_READY = "ShardsReady"
    """The checkpoint is cut into one shard per Cria."""
    CRIAS_TRAINED = "CriasTrained"
    """Every Cria's feature maps and adapters are in the store."""
    STITCHED = "Stitched"
    """End-to-end adapters are trained."""
    TEACHER_ADAPTED = "TeacherAdapted"
    """The adapted teacher is trained; only where the run wants one."""
    CLEANED_UP = "CleanedUp"
    """What no stage reads any more is deleted; only where the store refuses that, and then False."""
    SUCCEEDED = "Succeeded"
    """All stages are complete, evaluation and export included."""
    RECONCILING = "Reconciling"
    """Work is going on (kstatus)."""
    STALLED = "Stalled"
    """Nothing will go on without a person (kstatus); the message says what to do."""


class Condition(Camel):
    """One condition, as metav1.Condition."""

    type: ConditionType = Field(description="What it is about.")
    status: str = Field(description="True, False or Unknown.", pattern="^(True|False|Unknown)$")
    reason: str = Field(description="One CamelCase word for programs.", max_length=1024)
    message: str = Field(default="", description="A sentence for people.", max_length=32768)
    observed_generation: int = Field(default=0, description="Generation of the spec that it speaks of.")
    last_transition_time: str = Field(description="When the status last changed, RFC 3339.")


TRAINING_OPERATOR_MISSING = "TrainingOperatorMissing"
"""Reason of a condition Accepted that is False and yet holds up no stage but those of several pods."""


class State(StrEnum):
    """State of a stage or a Cria."""

    BLOCKED = "Blocked"
    """An input is not there yet."""
    WAITING = "Waiting"
    """Its inputs are there; the message says what it waits for, a free GPU say."""
    STARTING = "Starting"
    """Its Job is made; no pod runs yet."""
    RUNNING = "Running"
    """Its pods run."""
    SUCCEEDED = "Succeeded"
    """Its artifact is complete in the store."""
    FAILED = "Failed"
    """It is not tried again by itself; the message says why."""
    SUSPENDED = "Suspended"
    """Stopped: spec.suspend is true; in a report from the store, it has told nothing for minutes."""


class Source(StrEnum):
    """Where a complete artifact came from."""

    COMPUTED = "Computed"
    """A Job of this Trenchcoat made it."""
    REUSED = "Reused"
    """It was in the store already."""


class WaitingReason(StrEnum):
    """What a stage or a Cria in state Waiting waits for."""

    GPU = "Gpu"
    """A free GPU."""
    PARALLELISM = "Parallelism"
    """Fewer running Crias: spec.scheduling.maxParallelCrias are running."""
    SCHEDULER = "Scheduler"
    """A node for its pods: the scheduler has found none, and an autoscaler may add one."""
    REFUSED = "Refused"
    """That the API server lets a pod be made: a quota, a limit or an admission plugin refuses it."""
    QUEUE = "Queue"
    """Kueue, which has not admitted its Job yet."""
    RETRY = "Retry"
    """The end of the back-off after a failed try."""
    CLEANUP = "Cleanup"
    """The end of an earlier Job of the same name."""
    STORE = "Store"
    """The store, which cannot be used."""
    TRAINING_OPERATOR = "TrainingOperator"
    """The training-operator, which is not installed."""
    SHARED = "Shared"
    """Another Trenchcoat, which makes the same artifact."""
    PLAN = "Plan"
    """A person: by the plan some stage cannot fit into its GPUs."""
    GATE = "Gate"
    """A bound of spec.gates: the evaluation that it bounds, or a person, where a bound is not kept to."""


class AttemptStatus(Camel):
    """One Job or PyTorchJob of a stage or a Cria."""

    number: int = Field(description="Counted from 1.")
    outcome: str = Field(default="", description="Succeeded or a class of failure; empty while it goes on.")
    gpu_seconds: str = Field(default="", description="GPU seconds that its containers held.")


class WaitStatus(Camel):
    """One wait that is over, or goes on."""

    reason: WaitingReason = Field(description="What it waited for.")
    since: str = Field(description="When that began, RFC 3339.")
    until: str = Field(default="", description="When it was over, RFC 3339; empty while it goes on.")
    message: str = Field(default="", description="Why, as it was last told.", max_length=256)


MAX_WAITS = 6
"""Waits that a row tells of: the latest."""


class Work(Camel):
    """What the rows of stages and of Crias have in common."""

    state: State = Field(description="Blocked, Waiting, Starting, Running, Succeeded, Failed or Suspended.")
    message: str = Field(default="", description="Why it is in this state.", max_length=4096)
    waiting_reason: WaitingReason | None = Field(
        default=None,
        description=(
            "What it waits for: Gpu, Parallelism, Scheduler, Refused, Queue, Retry, Cleanup, Store, "
            "TrainingOperator, Shared, Plan or Gate."
        ),
    )
    waiting_since: str = Field(default="", description="Since when it waits for that, RFC 3339.")
    waiting_place: str = Field(
        default="",
        description=(
            "Its place in the queue, such as 2 of 5: among the Trenchcoats that wait for such GPUs, in "
            "Kueue's LocalQueue, or among its Crias."
        ),
    )
    waits: list[WaitStatus] = Field(
        default_factory=list, description="Its latest waits.", max_length=MAX_WAITS
    )
    key: str = Field(default="", description="Content key of its artifact.")
    attempt: int = Field(default=0, description="Number of the latest try, counted from 1.")
    node: str = Field(default="", description="Node of its first pod.")
    phase: str = Field(default="", description="What it does now, such as transfer or lora.")
    step: int = Field(default=0, description="Steps done in this phase.")
    steps: int = Field(default=0, description="Steps of this phase.")
    progress: str = Field(default="", description="Share that is done, in percent.")
    loss: str = Field(default="", description="Latest or final loss.")
    eta: str = Field(default="", description="Time until it is done, such as 4m10s.")
    started_at: str = Field(default="", description="When it first ran, RFC 3339.")
    completed_at: str = Field(default="", description="When its artifact was complete, RFC 3339.")
    seconds: str = Field(default="", description="Time spent computing.")
    source: Source | None = Field(default=None, description="Computed, or Reused from the store.")
    uri: str = Field(default="", description="Where its artifact stands.")
    bytes: int = Field(default=0, description="Size of its artifact.")
    digest: str = Field(
        default="", description="SHA-256 of its artifact's content: what `sha256sum` prints of all objects."
    )
    last_failure: str = Field(default="", description="How the latest failed try ended.", max_length=4096)
    gpu_seconds: str = Field(
        default="", description="GPU seconds held by the containers of all attempts at this artifact."
    )
    attempts: list[AttemptStatus] = Field(
        default_factory=list,
        description="The latest attempts.",
        max_length=10,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )


class StageStatus(Work):
    """One stage; the Crias together are one."""

    name: str = Field(
        description="tokenize, collect, shard, select, cria, stitch, adapt, evaluate or export."
    )


class CriaStatus(Work):
    """One Cria."""

    index: int = Field(description="Counted from 0.")
    layers: str = Field(description="First and last decoder layer, such as 0-8.")
    error: str = Field(
        default="", description="Relative error of attention outputs after transfer, of its worst layer."
    )
    losses: dict[str, str] = Field(default_factory=dict, description="Latest or final losses by name.")
    curve: list[str] = Field(default_factory=list, description="At most 32 losses.", max_length=32)


class SupersededArtifact(Camel):
    """An artifact of a former spec."""

    stage: str = Field(description="The stage that made it.")
    key: str = Field(description="Its content key.")


class StageEstimate(Camel):
    """What one stage needs, all its Jobs together where nothing else is said."""

    name: str = Field(description="The stage.")
    gpu_memory_bytes: int = Field(default=0, description="Memory that it needs on each GPU, at least.")
    host_memory_bytes: int = Field(default=0, description="Memory that one of its pods needs.")
    reads_bytes: int = Field(default=0, description="Bytes that it reads from the store.")
    writes_bytes: int = Field(default=0, description="Bytes of its artifacts.")
    seconds: str = Field(default="", description="Time that it takes.")
    gpu_hours: str = Field(default="", description="GPUs times hours.")
    cost: str = Field(default="", description="By spec.plan.pricePerGpuHour; empty without.")


class EstimateStatus(Camel):
    """What the run needs, by the model's shape and measured rates; `trenchcoat plan` tells more."""

    tokens: int = Field(description="Training tokens in full sequences.")
    activation_bytes: int = Field(description="Hidden states at all inner boundaries.")
    weight_bytes: int = Field(description="The teacher's weights in spec.dtype.")
    cria_weight_bytes: int = Field(description="Weights of the largest Cria, which its GPU must hold.")
    collect_gpu_hours: str = Field(description="GPU-hours of collection.")
    cria_gpu_hours: str = Field(description="GPU-hours of all Crias.")
    adapt_gpu_hours: str = Field(
        default="", description="GPU-hours of the adapted teacher; empty where there is none."
    )
    gpu: str = Field(default="", description="The kind of GPU that times are reckoned for.")
    parallel_crias: int = Field(default=0, description="Crias at one time.")
    seconds: str = Field(default="", description="Time from the first stage to the last.")
    gpu_hours: str = Field(default="", description="GPU-hours of all stages.")
    cost: str = Field(default="", description="By spec.plan.pricePerGpuHour; empty without.")
    peak_stored_bytes: int = Field(default=0, description="The most that the store holds at once.")
    written_bytes: int = Field(default=0, description="All artifacts together.")
    stages: list[StageEstimate] = Field(
        default_factory=list,
        description="The stages, in order.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class TrenchcoatStatus(Camel):
    """How the linearization goes."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this speaks of.")
    default_preset: str = Field(
        default="",
        description="The preset that it has while its spec names neither preset nor form.",
    )
    stage: str = Field(default="", description="What it does now, for the STAGE column.")
    crias_done: str = Field(default="", description="Trained Crias of all, such as 9/14.")
    loss: str = Field(default="", description="Latest loss of the running stage.")
    progress: str = Field(default="", description="Share of the whole run that is done, in percent.")
    eta: str = Field(default="", description="Time until the running stage is done.")
    waiting: str = Field(
        default="",
        description="What waits: for what, since when, its place in the queue, and what would end it.",
    )
    max_crias_running: int = Field(default=0, description="Most Cria pods seen running at one time.")
    stored_bytes: int = Field(default=0, description="Size of all complete artifacts.")
    gpu_seconds: str = Field(
        default="", description="GPU seconds held by the containers of all attempts at all stages so far."
    )
    accounted_at: str = Field(default="", description="Until when GPU seconds are counted, RFC 3339.")
    estimate: EstimateStatus | None = Field(default=None, description="What the run needs.")
    export_uri: str = Field(default="", description="Where the Hugging Face checkpoint stands.")
    model: ModelFacts | None = Field(default=None, description="Facts of the teacher.")
    data: DataFacts | None = Field(default=None, description="Facts of the text.")
    selection: Selection | None = Field(default=None, description="The wide layers that the run chose.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Conditions, one of each type.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stages: list[StageStatus] = Field(
        default_factory=list,
        description="Stages, in order.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    crias: list[CriaStatus] = Field(
        default_factory=list,
        description="Crias, in order.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
    )
    superseded: list[SupersededArtifact] = Field(
        default_factory=list,
        description="What was made for former specs and may still stand in the store.",
        max_length=MAX_SUPERSEDED,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"]},
    )
    perplexities: list[Perplexity] = Field(
        default_factory=list,
        description="Results on held-out text.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    perplexity_ratio: str = Field(
        default="",
        description=(
            "The student's perplexity over that of the teacher, or of the adapted teacher where there is one."
        ),
    )
    kept_recall: str = Field(
        default="",
        description=(
            "Share of what the teacher copies that the student copies, at the longest distance at which the "
            "teacher copies anything."
        ),
    )
    evaluation: Evaluation | None = Field(
        default=None, description="Recall, bytes of decode state, and what was not measured."
    )

    @property
    def preset_by_default(self) -> Preset:
        """Of a spec that names neither preset nor form: what was the default when it was first seen."""
        return kept_preset(self.default_preset, self.observed_generation)
