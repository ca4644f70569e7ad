"""`kubectl trenchcoat plan`: what a file would run and need, and what of it is complete already."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Console
from trenchcoat_api import texts
from trenchcoat_api.artifacts import Artifact, Artifacts, DataFacts
from trenchcoat_api.planning.command import given, read_config, tell
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.planning.rates import labelled_memory
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State

from trenchcoat_kubectl.commands import RESOURCE, read
from trenchcoat_kubectl.kubectl import Kubectl, PluginError


def plan(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Print the plan."""
    try:
        wanted = Trenchcoat.from_yaml(arguments.file)
    except (InvalidTrenchcoatError, OSError) as error:
        raise PluginError(texts.fault(error)) from error
    others = [read(body) for body in kubectl.get(RESOURCE)["items"]]
    try:
        model, data = _model(arguments, wanted, others)
        outline = Outline.of(wanted.spec, model, data)
        known = complete(Artifacts(wanted.spec).all(list(outline.crias)), wanted, others)
        keys = {artifact.key for artifact in known}
        made = make_plan(outline, _as_nodes_tell(given(arguments, keys.__contains__), wanted, kubectl))
    except (OSError, ValueError) as error:
        raise PluginError(texts.fault(error)) from error
    code = tell(made, wanted.spec, arguments, console)
    if arguments.output == "table":
        console.print(told(known))
    return code


def _model(
    arguments: Namespace, wanted: Trenchcoat, others: Iterable[Trenchcoat]
) -> tuple[PlannedModel, DataFacts | None]:
    """The teacher, by its config.json or by what another Trenchcoat has read; and the text, if one has."""
    if arguments.config:
        return read_config(arguments.config), None
    known = next((other for other in others if _same_model(other, wanted) and other.status.model), None)
    if known is None or known.status.model is None:
        raise PluginError(
            f"no Trenchcoat of this namespace has read {wanted.spec.model.source} yet: give its config.json "
            "with --config"
        )
    same_text = known.spec.data == wanted.spec.data
    return PlannedModel.of_facts(known.status.model, wanted.spec), known.status.data if same_text else None


def _same_model(one: Trenchcoat, other: Trenchcoat) -> bool:
    return (one.spec.model.source, one.spec.model.revision) == (
        other.spec.model.source,
        other.spec.model.revision,
    )


def _as_nodes_tell(wishes: Given, wanted: Trenchcoat, kubectl: Kubectl) -> Given:
    """With the kind and the memory of the cluster's GPUs, where neither options nor the spec say."""
    if wishes.gpu or wishes.gpu_memory or wanted.spec.plan.gpu or wanted.spec.plan.gpu_memory:
        return wishes
    try:
        nodes = kubectl.get("nodes")["items"]
    except PluginError:
        return wishes  # one may not look at nodes: the plan says for which GPUs it is
    resource = wanted.spec.scheduling.gpu_resource
    labels = [node["metadata"].get("labels") or {} for node in nodes]
    sizes = [(labelled_memory(own, resource) or 0, wishes.rates.by_product(own, resource)) for own in labels]
    largest, kind = max(sizes, key=lambda item: item[0], default=(0, None))
    return replace(wishes, gpu=kind, gpu_memory=largest or None)


def complete(wanted: list[Artifact], trenchcoat: Trenchcoat, others: Iterable[Trenchcoat]) -> list[Artifact]:
    """The artifacts that others, by their status, have put into the same place of the same store."""
    store = trenchcoat.spec.store
    keys = {
        row.key
        for other in others
        if (other.spec.store.endpoint.rstrip("/"), other.spec.store.bucket, other.spec.store.prefix)
        == (store.endpoint.rstrip("/"), store.bucket, store.prefix)
        for row in [*other.status.stages, *other.status.crias]
        if row.state is State.SUCCEEDED and row.key
    }
    return [artifact for artifact in wanted if artifact.key in keys]


def told(artifacts: list[Artifact]) -> str:
    """A sentence on what need not be computed again."""
    if not artifacts:
        return "Nothing of it is complete yet."
    stages = [item.stage.value for item in artifacts if item.stage is not Stage.CRIA]
    crias = sum(item.stage is Stage.CRIA for item in artifacts)
    if crias:
        stages.append("1 Cria" if crias == 1 else f"{crias} Crias")
    return f"Complete already, and reused: {', '.join(stages)}."
