"""What a checkpoint was made of, for its card: teacher, text, code, artifacts and the spec itself."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import yaml
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import MissingInputError
from trenchcoat_trainer.runtime.context import StageContext

PACKAGES = ("trenchcoat", "torch", "transformers")
_TOLD = ("model", "data", "preset", "layersPerCria", "dtype", "seed", "attention", "transfer", "criaLora")
"""Parts of the spec that decide what is computed; those before the stages of several GPUs."""
_TOLD_OF_STAGES = ("stitch", "evaluate", "export")
_SECRET = "tokenSecretRef"  # noqa: S105  (a field's name)


@dataclass(frozen=True)
class Lineage:
    """Where a checkpoint comes from."""

    rows: list[tuple[str, str]]
    """Names and values for a table."""
    spec: str
    """What of the spec decides the result, in YAML; without places and Secrets of the cluster."""


def lineage(context: StageContext) -> Lineage:
    """Return the lineage of the export at hand."""
    spec = context.spec
    revision = f", revision {spec.model.revision}" if spec.model.source.startswith("hf://") else ""
    rows = [
        ("teacher", f"{spec.model.source.removeprefix('hf://')}{revision}"),
        ("text", _text(spec)),
        ("made by", ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)),
    ]
    crias = [context.artifacts.cria(cria) for cria in context.crias]
    inputs = [
        context.artifacts.tokenize,
        context.artifacts.shard,
        *crias,
        context.artifacts.stitch(context.crias),
    ]
    for artifact in inputs:
        if digest := _digest(context, artifact):
            rows.append((f"{artifact.name} {artifact.key}", digest))
    return Lineage(rows, told_spec(spec))


def told_spec(spec: TrenchcoatSpec) -> str:
    """Return what of a spec decides the result, in YAML."""
    fields = spec.model_dump(by_alias=True, mode="json", exclude_none=True)
    told = {name: fields[name] for name in (*_TOLD, *_TOLD_OF_STAGES)}
    for part in told.values():
        if isinstance(part, dict):
            part.pop(_SECRET, None)
    return yaml.safe_dump(told, sort_keys=False)


def version_of(package: str) -> str:
    """Its version; code may also run from a folder, which has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of no version, not installed"


def _text(spec: TrenchcoatSpec) -> str:
    source = spec.data.source
    if not source.startswith("hf://"):
        return source
    config = f", config {spec.data.config}" if spec.data.config else ""
    return f"{source.removeprefix('hf://')}{config}, split {spec.data.split}, revision {spec.data.revision}"


def _digest(context: StageContext, artifact: Artifact) -> str:
    """Return the digest of an artifact's content; empty where it is not kept any more."""
    try:
        return context.manifest(artifact).digest
    except MissingInputError:
        return ""
