"""The command `trenchcoat rates`: how fast this machine was in a run, for plans of others."""

import argparse
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console
from trenchcoat_api import texts
from trenchcoat_api.artifacts import Artifact, Artifacts, Manifest
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.paces import Paces, paces_path
from trenchcoat_api.planning.measured import Ran, as_yaml, fit
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.printing import Printer
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import CorruptObjectError, MissingInputError, NotFoundError, StageError
from trenchcoat_trainer.local.planning import read_model
from trenchcoat_trainer.reporting.command import fail
from trenchcoat_trainer.store.base import Readable

Model = TypeVar("Model", bound=BaseModel)


def add_rates(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "print how fast the machine of a run was, as a file for `trenchcoat plan --rates`"
    command = commands.add_parser("rates", help=text, description=text)
    command.add_argument("file", type=Path, metavar="FILE", help="the Trenchcoat that was run, in YAML")
    command.add_argument(
        "--store", type=Path, metavar="DIR", help="folder in place of the S3 store that it was run in"
    )
    command.add_argument(
        "--name", default="measured", metavar="KIND", help="what --gpu calls the machine (default: measured)"
    )
    command.add_argument(
        "--like",
        metavar="KIND",
        help="kind whose proportions are taken for what the run does not tell; else that of its GPUs",
    )
    command.add_argument(
        "--rates",
        type=Path,
        metavar="FILE",
        help="rates to add to, in place of those that were measured here",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        trenchcoat = Trenchcoat.from_yaml(arguments.file)
        outline, ran = read_run(trenchcoat.spec, arguments.store)
        known = Rates.load(arguments.rates)
        found = fit(outline, ran, known, name=arguments.name, like=arguments.like)
    except StageError as error:
        return fail(str(error), int(error.exit_code))
    except (InvalidTrenchcoatError, OSError, ValueError) as error:
        return fail(texts.fault(error), int(ExitCode.BAD_INPUT))
    head = (
        f"# By `trenchcoat rates`, of the run {trenchcoat.metadata.name}.\n"
        f"# What it does not tell is in proportion to {found.like}.\n"
    )
    Printer().out(head + as_yaml(found.rates).rstrip("\n"), highlight=False)
    if found.missing:
        stages = ", ".join(stage.value for stage in found.missing)
        Console(stderr=True, soft_wrap=True).print(
            f"[bold yellow]warning:[/] of {stages} this run tells no times: they are those of {found.like}",
            highlight=False,
        )
    return int(ExitCode.OK)


def read_run(spec: TrenchcoatSpec, folder: Path | None) -> tuple[Outline, list[Ran]]:
    """A run as its artifacts tell it, those that are complete and tell of their paces.

    Raises:
        MissingInputError: the text was not read yet.
        StoreError: the store cannot be used.
        CorruptObjectError: what stands there cannot be read.
        ValueError: the spec does not fit the model.
    """
    from trenchcoat_trainer.store import open_store

    store = open_store(spec, folder)
    artifacts = Artifacts(spec)
    try:
        text = _parsed(store, artifacts.tokenize.manifest_path, Manifest).facts.data
    except NotFoundError as error:
        raise MissingInputError(
            f"{store.name} has no run of this spec: name the store that it was run in, or run it first"
        ) from error
    outline = Outline.of(spec, read_model(spec, folder), text)
    crias = cria_ranges(outline.facts.layers, spec.layers_per_cria)
    found = [_read(store, artifact) for artifact in artifacts.all(crias)]
    return outline, [item for item in found if item is not None]


def _read(store: Readable, artifact: Artifact) -> Ran | None:
    try:
        manifest = _parsed(store, artifact.manifest_path, Manifest)
        return Ran(artifact, manifest, _parsed(store, paces_path(artifact), Paces))
    except NotFoundError:
        return None  # not complete, or made by an earlier version


def _parsed(store: Readable, path: str, kind: type[Model]) -> Model:
    try:
        return kind.model_validate_json(store.read(path))
    except ValidationError as error:
        raise CorruptObjectError(f"{path} cannot be read: delete it, and run its stage again") from error
