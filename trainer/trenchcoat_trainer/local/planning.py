"""The command `trenchcoat plan`: what a spec would run and what it would need, before anything starts."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Artifact, Artifacts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.planning.command import add_options, given, read_config, tell
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import make_plan
from trenchcoat_api.printing import Printer
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.reporting.command import fail

_BY_CONFIG = "a plan needs the model's config.json alone: --config FILE names one here"


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "print what would run and what it would need; reads the model's config.json, starts nothing"
    command = commands.add_parser("plan", help=text, description=text)
    add_options(command)
    command.add_argument("--store", type=Path, metavar="DIR", help="folder in place of the S3 store")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        spec = Trenchcoat.from_yaml(arguments.file).spec
        model = (
            read_config(arguments.config)
            if arguments.config is not None
            else read_model(spec, arguments.store)
        )
        outline = Outline.of(spec, model)
        plan = make_plan(outline, given(arguments, _in_store(outline, arguments)))
    except StageError as error:
        message = str(error)
        if arguments.config is None and not isinstance(error, BadInputError):
            message += f"; {_BY_CONFIG}"
        return fail(message, int(error.exit_code))
    except (InvalidTrenchcoatError, OSError, ValueError) as error:
        return fail(texts.fault(error), int(ExitCode.BAD_INPUT))
    return tell(plan, spec, arguments, Printer())


def read_model(spec: TrenchcoatSpec, store: Path | None) -> PlannedModel:
    """The model's shape, from spec.model.source.

    Raises:
        BadInputError: it is not the configuration of a Llama.
        StoreError: the store cannot be used.
    """
    from trenchcoat_trainer.checkpoints.teacher import open_teacher
    from trenchcoat_trainer.store import open_store

    teacher = open_teacher(spec, open_store(spec, store))
    facts = teacher.facts()
    return replace(PlannedModel.of_config(teacher.fields, f"config.json of {teacher.source}"), facts=facts)


def _in_store(outline: Outline, arguments: argparse.Namespace) -> Callable[[str], bool]:
    """Whether the artifact of a content key is complete; unknown, and so not, where no store is at hand."""
    from trenchcoat_trainer.store import open_store

    if arguments.config is not None and arguments.store is None:
        return lambda key: False  # the model is out of reach, and so may the store be
    store = open_store(outline.spec, arguments.store)
    wanted: dict[str, Artifact] = {
        artifact.key: artifact for artifact in Artifacts(outline.spec).all(list(outline.crias))
    }
    return lambda key: store.exists(wanted[key].manifest_path)
