"""The object that makes one artifact: what is the same whatever runs it."""

from collections.abc import Iterable, Sequence

from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_operator.children import names, pods, specs
from trenchcoat_operator.children.attempts import Attempt
from trenchcoat_operator.children.runners import runner
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Object
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def kind(spec: TrenchcoatSpec, work: Work) -> ChildKind:
    """Which kind of object runs a work."""
    return runner(spec, work).kind


def services(trenchcoat: Trenchcoat, works: Iterable[Work]) -> dict[str, Object]:
    """The Services that must be there beside what runs these works, by name."""
    bodies = [body for work in works for body in runner(trenchcoat.spec, work).services(trenchcoat)]
    return {body["metadata"]["name"]: body for body in bodies}


def _container(trenchcoat: Trenchcoat, work: Work) -> str:
    return kind(trenchcoat.spec, work).container


def _pod_spec(trenchcoat: Trenchcoat, work: Work, defaults: PodDefaults, spec_name: str) -> Object:
    return pods.pod_spec(trenchcoat.spec, work, spec_name, _container(trenchcoat, work), defaults)


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
    logs = {_DEFAULT_CONTAINER: _container(trenchcoat, work)}  # not those of a sidecar that stands before it
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
    tried = Attempt(
        trenchcoat=trenchcoat,
        work=work,
        metadata=metadata,
        template={"metadata": _pod_metadata(trenchcoat, work), "spec": spec},
        queued=bool(queue),
    )
    return runner(trenchcoat.spec, work).manifest(tried)
