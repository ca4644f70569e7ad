"""What users may set on the pods of a stage.

Of objects that are passed on to a Pod as they are, only the names have a type here: with the whole PodSpec
the custom resource definition would not fit into an annotation, as client-side apply needs.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from trenchcoat_api.base import Camel
from trenchcoat_api.rules import Rule, Unique, cel_string
from trenchcoat_api.strings import Bytes, Cpu, FurtherResource, ImageName, Label, Name

OWN_VOLUMES = ("spec", "tmp", "shm")
"""Volumes that the operator gives a pod."""
OWN_MOUNTS = ("/etc/trenchcoat", "/tmp", "/dev/shm")  # noqa: S108
"""Where it mounts them."""
OWN_LABELS = ("trenchcoat.dev/", "app.kubernetes.io/managed-by", "kueue.x-k8s.io/")
"""How names of labels begin by which the operator, and Kueue, tell pods apart."""
_ONE_OF_OURS = " || ".join(f"name.startsWith({cel_string(own)})" for own in OWN_LABELS)


def _one_of(names: tuple[str, ...]) -> str:
    return f"[{', '.join(cel_string(name) for name in names)}]"


class Quantities(Camel):
    """Compute resources of one pod, requested and limited alike; GPUs are set by the stage."""

    cpu: Cpu | None = Field(default=None, description="CPU cores requested, such as 500m or 8.")
    cpu_limit: Cpu | None = Field(
        default=None,
        description="Limit on CPU cores, where a quota or a LimitRange asks for one.",
    )
    memory: Bytes | None = Field(default=None, description="Memory requested and its limit.")
    ephemeral_storage: Bytes | None = Field(
        default=None, description="Local disk requested; evaluate asks for what it writes."
    )


class Quantity(TypedDict):
    """A resource of one container, requested and limited alike."""

    name: Annotated[FurtherResource, Field(description="Such as rdma/hca.")]
    quantity: Annotated[Bytes, Field(description='Such as "1", or "1Gi" of huge pages.')]


class EnvVar(TypedDict):
    """A variable, as in a Container; all but its name is Kubernetes' to check."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: Annotated[str, Field(description="Name of the variable.", min_length=1, max_length=253)]


class Volume(TypedDict):
    """A volume, as in a Pod; all but its name is Kubernetes' to check."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: Annotated[Label, Field(description="Name of the volume.")]


class VolumeMount(TypedDict):
    """Where a volume is mounted, as in a Container; the rest is Kubernetes' to check."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: Annotated[str, Field(description="Name of the volume.", min_length=1, max_length=63)]
    mountPath: Annotated[str, Field(description="Folder in the container.", min_length=1, max_length=1024)]


class PodOverrides(Camel):
    """What the pods of a stage need beyond the operator's defaults."""

    rules = (
        Rule(
            cel=f"!has(self.volumes) || self.volumes.all(volume, !(volume.name in {_one_of(OWN_VOLUMES)}))",
            holds=lambda pod: all(volume["name"] not in OWN_VOLUMES for volume in pod.volumes),
            message=f"volumes may not be named {', '.join(OWN_VOLUMES)}, as the operator's own: rename them",
            field="volumes",
        ),
        Rule(
            cel="!has(self.volumeMounts) || self.volumeMounts.all(mount, "
            f"!(mount.mountPath in {_one_of(OWN_MOUNTS)}))",
            holds=lambda pod: all(mount["mountPath"] not in OWN_MOUNTS for mount in pod.volume_mounts),
            message=f"{', '.join(OWN_MOUNTS)} are taken by the operator: mount the volumes elsewhere",
            field="volumeMounts",
        ),
        Rule(
            cel="!has(self.volumeMounts) || self.volumeMounts.all(mount, "
            f"mount.name in {_one_of(OWN_VOLUMES)} || "
            "(has(self.volumes) && self.volumes.exists(volume, volume.name == mount.name)))",
            holds=lambda pod: all(
                mount["name"] in (*OWN_VOLUMES, *(volume["name"] for volume in pod.volumes))
                for mount in pod.volume_mounts
            ),
            message="volumeMounts name a volume that volumes lacks: add it there, or correct the name",
            field="volumeMounts",
        ),
        Rule(
            cel=f"!has(self.labels) || !self.labels.exists(name, {_ONE_OF_OURS})",
            holds=lambda pod: not any(name.startswith(OWN_LABELS) for name in pod.labels),
            message=f"{', '.join(OWN_LABELS)} tell pods apart: name labels otherwise",
            field="labels",
        ),
    )

    image: ImageName | None = Field(
        default=None, description="Trainer image with the entrypoint of the operator's, the default."
    )
    resources: Quantities = Field(default_factory=Quantities, description="CPU, memory and disk of a pod.")
    extended_resources: Annotated[list[Quantity], Unique("name")] = Field(
        default_factory=list,
        description="Resources besides GPUs: RDMA, huge pages.",
        max_length=20,
    )
    resource_claim_template_name: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="ResourceClaimTemplate, in place of GPUs."
    )
    runtime_class_name: Name | None = Field(default=None, description="RuntimeClass, where GPUs need one.")
    service_account_name: Name | None = Field(
        default=None,
        description="ServiceAccount; its token is not mounted.",
    )
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=dict, description="Annotations of the pods.", max_length=50
    )
    labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, description="Further labels of the pods.", max_length=50
    )
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, description="Labels of nodes that may run it.", max_length=50
    )
    tolerations: list[dict[str, Any]] = Field(
        default_factory=list, description="Tolerations, as in a Pod.", max_length=50
    )
    affinity: dict[str, Any] = Field(
        default_factory=dict,
        description="Affinity, as in a Pod; Crias have a podAffinity to one another unless it is set here.",
    )
    env: Annotated[list[EnvVar], Unique("name")] = Field(
        default_factory=list, description="Environment variables, as in a Container.", max_length=100
    )
    volumes: Annotated[list[Volume], Unique("name")] = Field(
        default_factory=list, description="Volumes, as in a Pod.", max_length=50
    )
    volume_mounts: Annotated[list[VolumeMount], Unique("mountPath")] = Field(
        default_factory=list,
        description="Where the volumes are mounted, as in a Container.",
        max_length=50,
    )
    deadline_seconds: int | None = Field(
        default=None,
        description=(
            "Time that an attempt may run, waiting not counted; one that runs longer is stopped after a "
            "checkpoint and counts as failed. None by default."
        ),
        ge=1,
        le=31_536_000,
    )
