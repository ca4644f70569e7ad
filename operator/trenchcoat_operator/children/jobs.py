"""The Job or PyTorchJob that makes one artifact."""

from collections.abc import Sequence

from trenchcoat_api import constants
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children import names, pods, specs
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Object
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def kind(work: Work) -> ChildKind:
    """Which kind of object runs a work."""
    return ChildKind.PYTORCH_JOB if work.distributed else ChildKind.JOB


def _pod_spec(trenchcoat: Trenchcoat, work: Work, defaults: PodDefaults, spec_name: str) -> Object:
    return pods.pod_spec(trenchcoat.spec, work, spec_name, kind(work).container, defaults)


def template_hash(trenchcoat: Trenchcoat, work: Work, defaults: PodDefaults) -> str:
    """Changes when pods would now be made otherwise.

    Live pods are never compared with what was asked for, because admission plugins change them.
    """
    scheduling = trenchcoat.spec.scheduling
    template: list[object] = [_pod_spec(trenchcoat, work, defaults, ""), work.pods, scheduling.queue_name]
    if scheduling.workload_priority_class_name:
        template.append(scheduling.workload_priority_class_name)
    wanted = graph.overrides(trenchcoat.spec, work.stage)
    if wanted.annotations or wanted.labels:
        template.append([wanted.annotations, wanted.labels])
    return names.digest(template)


def _pod_metadata(trenchcoat: Trenchcoat, work: Work) -> Object:
    """Labels and annotations of pods: the user's, and those by which pods and their logs are found."""
    wanted = graph.overrides(trenchcoat.spec, work.stage)
    logs = {_DEFAULT_CONTAINER: kind(work).container}  # not those of a sidecar that stands before it
    return {
        "labels": wanted.labels | names.labels(trenchcoat, work.artifact),
        "annotations": logs | wanted.annotations,
    }


def _queue_labels(trenchcoat: Trenchcoat) -> dict[str, str]:
    """The labels that hand an object over to Kueue; none without a queue."""
    scheduling = trenchcoat.spec.scheduling
    if not scheduling.queue_name:
        return {}
    labels = {constants.LABEL_KUEUE_QUEUE: scheduling.queue_name}
    if scheduling.workload_priority_class_name:
        labels[constants.LABEL_KUEUE_PRIORITY] = scheduling.workload_priority_class_name
    return labels


def build(
    trenchcoat: Trenchcoat,
    work: Work,
    attempt: int,
    defaults: PodDefaults,
    *,
    avoid: Sequence[str] = (),
    expects_nodes: bool = False,
) -> Object:
    """The object that runs a work for the given time.

    Args:
        trenchcoat: Whose it is.
        work: What it makes.
        attempt: Counted from 1.
        defaults: What pods get where the spec does not say otherwise.
        avoid: Nodes that are taken only where no other will do.
        expects_nodes: Whether it is made for nodes that are yet to be added.
    """
    spec_name = specs.spec_name(trenchcoat)
    metadata = names.metadata(
        trenchcoat, names.child_name(trenchcoat.metadata.name, work.artifact, attempt), work.artifact
    )
    metadata["annotations"] = {
        constants.ANNOTATION_KEY: work.key,
        constants.ANNOTATION_ATTEMPT: str(attempt),
        constants.ANNOTATION_SPEC: spec_name,
        constants.ANNOTATION_TEMPLATE: template_hash(trenchcoat, work, defaults),
    }
    if expects_nodes:
        metadata["annotations"][constants.ANNOTATION_EXPECTS_NODES] = "true"
    queue = _queue_labels(trenchcoat)
    metadata["labels"] |= queue
    spec = _pod_spec(trenchcoat, work, defaults, spec_name)
    if avoid:
        spec["affinity"] = pods.avoiding(spec.get("affinity", {}), avoid)
    template = {"metadata": _pod_metadata(trenchcoat, work), "spec": spec}
    if work.distributed:
        return _pytorch_job(metadata, work, template, queued=bool(queue))
    return _job(metadata, template, queued=bool(queue))


def _job(metadata: Object, template: Object, *, queued: bool) -> Object:
    final = (ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.OUT_OF_MEMORY)
    stopped = (ExitCode.PREEMPTED, ExitCode.TERMINATED)
    disrupted: Object = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # Another pod of the same Job would come after the Job controller's back-off, 10 s to 10 minutes: the
    # operator makes another Job at once. Kueue, though, preempts by suspending a Job: its pod then ends
    # without being a target of disruption, and that is no end of the Job.
    rules: list[Object] = [{"action": "FailJob", **disrupted}]
    if queued:
        rules.append({"action": "Ignore", "onExitCodes": _exits(*stopped)})
        rules.append({"action": "FailJob", "onExitCodes": _exits(*final)})
    else:
        rules.append({"action": "FailJob", "onExitCodes": _exits(*final, *stopped)})
    spec: Object = {
        "backoffLimit": 0,  # tries are the operator's: one Job for each
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": template,
    }
    if queued:
        spec["suspend"] = True  # Kueue admits it
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _exits(*codes: ExitCode) -> Object:
    return {"containerName": ChildKind.JOB.container, "operator": "In", "values": sorted(map(int, codes))}


def _pytorch_job(metadata: Object, work: Work, template: Object, *, queued: bool) -> Object:
    replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    if work.pods > 1:
        replicas["Worker"] = {"replicas": work.pods - 1, "restartPolicy": "Never", "template": template}
    policy: Object = {"cleanPodPolicy": "Running"}
    if queued:
        policy["suspend"] = True
    spec: Object = {"runPolicy": policy, "pytorchReplicaSpecs": replicas}
    if work.gpus > 1:
        spec["nprocPerNode"] = str(work.gpus)
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}
