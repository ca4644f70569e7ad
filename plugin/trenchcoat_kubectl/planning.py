"""`kubectl trenchcoat plan`: what a file would run and need, and what of it is complete already."""

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from trenchcoat_api.artifacts import Artifact, Artifacts, ModelFacts
from trenchcoat_api.estimate import estimate, layer_parameters
from trenchcoat_api.layer_kinds import check_named_layers
from trenchcoat_api.plan import needs_table, stage_table
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
        raise PluginError(str(error)) from error
    others = [read(body) for body in kubectl.get(RESOURCE)["items"]]
    model = config_facts(arguments.config) if arguments.config else known_facts(wanted, others)
    if model is None:
        raise PluginError(
            f"no Trenchcoat of this namespace has read {wanted.spec.model.source} yet: give its config.json "
            "with --config"
        )
    try:
        needs = estimate(wanted.spec, model)
        check_named_layers(wanted.spec.attention, model.layers)
    except ValueError as error:
        raise PluginError(str(error)) from error
    console.print(stage_table(wanted.spec, needs))
    console.print(needs_table(wanted.spec, needs, arguments.tflops))
    console.print(told(complete(Artifacts(wanted.spec).all(list(needs.crias)), wanted, others)))
    return 0


def known_facts(wanted: Trenchcoat, others: Iterable[Trenchcoat]) -> ModelFacts | None:
    """The shape of a model that another Trenchcoat, or an earlier form of this one, has read."""
    for other in others:
        same = (other.spec.model.source, other.spec.model.revision) == (
            wanted.spec.model.source,
            wanted.spec.model.revision,
        )
        if same and other.status.model is not None:
            return other.status.model
    return None


def config_facts(path: Path) -> ModelFacts:
    """The shape of a Llama, from its config.json.

    Raises:
        PluginError: it cannot be read, or is not that of a Llama.
    """
    try:
        config = json.loads(path.read_text())
        if config.get("model_type") != "llama":
            raise PluginError(f"{path}: model_type is {config.get('model_type')!r}, not llama")
        hidden, heads, vocabulary = (
            config[name] for name in ("hidden_size", "num_attention_heads", "vocab_size")
        )
        facts = ModelFacts(
            layers=config["num_hidden_layers"],
            hidden_size=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=vocabulary,
            parameters=0,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise PluginError(f"{path}: {error}") from error
    except KeyError as error:
        raise PluginError(f"{path} has no {error.args[0]}: give a Llama's config.json") from error
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    parameters = facts.layers * layer_parameters(facts) + embeddings + hidden
    return facts.model_copy(update={"parameters": parameters})


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
