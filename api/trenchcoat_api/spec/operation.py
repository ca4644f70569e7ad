"""How a run is operated: its share of the cluster, its pods, and what becomes of its artifacts."""

from enum import StrEnum

from pydantic import Field

from trenchcoat_api.base import Camel
from trenchcoat_api.pods import PodOverrides
from trenchcoat_api.rules import Rule
from trenchcoat_api.strings import Bytes, ExtendedResource, Label, Name, PositiveDecimal


class Distributed(StrEnum):
    """What runs the stages that have several pods: collect, stitch and adapt."""

    PYTORCH_JOB = "PyTorchJob"
    """The Kubeflow training operator, v1."""
    INDEXED_JOB = "IndexedJob"
    """Kubernetes alone: an Indexed Job, and a headless Service by which its pods find one another."""


class Scheduling(Camel):
    """How the Jobs share the cluster with other tenants."""

    rules = (
        Rule(
            cel="!has(self.workloadPriorityClassName) || has(self.queueName)",
            holds=lambda scheduling: not scheduling.workload_priority_class_name or scheduling.queue_name,
            message="workloadPriorityClassName is Kueue's: set queueName, or use priorityClassName",
            field="workloadPriorityClassName",
        ),
    )

    distributed: Distributed = Field(
        default=Distributed.PYTORCH_JOB,
        description=(
            "What runs collect, stitch and adapt: a PyTorchJob, for which the cluster needs the Kubeflow "
            "training operator v1, or an IndexedJob (an Indexed Job with a headless Service), for which it "
            "needs nothing. Results are the same; attempts that run are left as they are."
        ),
    )
    max_parallel_crias: int = Field(
        default=1000, description="Cria Jobs at one time, at most.", ge=1, le=1000
    )
    pending_jobs: int | None = Field(
        default=None,
        description=(
            "Jobs that may wait as Pending pods beyond the GPUs that are free, so that an autoscaler adds "
            "nodes; 0 where the cluster does not grow. The operator's own setting by default. Where no node "
            "is there that the pods may go to, one Job waits so in any case."
        ),
        ge=0,
        le=64,
    )
    gpu_resource: ExtendedResource = Field(
        default="nvidia.com/gpu", description="Name of the extended resource that counts GPUs."
    )
    queue_name: Label | None = Field(
        default=None,
        description="Kueue LocalQueue in the Trenchcoat's namespace; Kueue then decides when Jobs start.",
    )
    workload_priority_class_name: Label | None = Field(
        default=None,
        description=(
            "Kueue WorkloadPriorityClass: the order in the queue, and who gives way; pods' priority is not "
            "changed by it."
        ),
    )
    priority_class_name: Name | None = Field(
        default=None,
        description="PriorityClass of all pods; Kueue's too, unless workloadPriorityClassName is set.",
    )
    max_attempts: int = Field(
        default=3,
        description="Tries of a stage before it counts as failed; preemptions are free.",
        ge=1,
        le=100,
    )


class Planning(Camel):
    """What the plan of a run goes by; it decides whether a run starts, never what it computes."""

    gpu: Label | None = Field(
        default=None,
        description=(
            "Kind of the GPUs by which times are reckoned, such as h100-80gb or h200-141gb; by default the "
            "first. Its memory is what stages must fit into."
        ),
    )
    gpu_memory: Bytes | None = Field(
        default=None,
        description=(
            "Memory of a GPU, such as 80G, that stages must fit into. By default that of gpu, and without "
            "either what the nodes' labels tell."
        ),
    )
    price_per_gpu_hour: PositiveDecimal | None = Field(
        default=None, description="What a GPU costs an hour, in any currency."
    )
    force: bool = Field(
        default=False, description="Whether a run goes on though a stage cannot fit into its GPUs."
    )


class Retention(StrEnum):
    """What becomes of artifacts that this Trenchcoat made or used; those that others use are always kept."""

    KEEP = "Keep"
    """All stay in the store."""
    DELETE_INTERMEDIATE = "DeleteIntermediate"
    """Activations go once all Crias are trained, shards once all stages are complete."""
    DELETE = "Delete"
    """All go when the Trenchcoat is deleted."""


class StagePods(Camel):
    """Pod settings by stage."""

    tokenize: PodOverrides = Field(default_factory=PodOverrides, description="The tokenization Job.")
    collect: PodOverrides = Field(default_factory=PodOverrides, description="The collection's pods.")
    shard: PodOverrides = Field(default_factory=PodOverrides, description="The sharding Job.")
    select: PodOverrides = Field(default_factory=PodOverrides, description="The selection Job.")
    cria: PodOverrides = Field(default_factory=PodOverrides, description="Each Cria Job.")
    stitch: PodOverrides = Field(
        default_factory=PodOverrides, description="The stitch's pods, and the adapted teacher's."
    )
    evaluate: PodOverrides = Field(default_factory=PodOverrides, description="The evaluation Job.")
    export: PodOverrides = Field(default_factory=PodOverrides, description="The export Job.")
