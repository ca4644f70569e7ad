"""The command `trenchcoat plan`: what a spec would run and what it would need, before anything starts."""

import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.estimate import TERAFLOPS, estimate
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.layer_kinds import check_named_layers
from trenchcoat_api.plan import needs_table, stage_table
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.store.credentials import redact


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "print what would run and what it would need; reads the model's config.json, starts nothing"
    command = commands.add_parser("plan", help=text, description=text)
    command.add_argument("spec", type=Path, metavar="FILE", help="the Trenchcoat in YAML")
    command.add_argument("--store", type=Path, metavar="DIR", help="folder in place of the S3 store")
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json, if the model is out of reach"
    )
    command.add_argument(
        "--tflops",
        type=float,
        default=TERAFLOPS,
        metavar="N",
        help=f"what one GPU sustains in bf16 (default: {TERAFLOPS:.0f})",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        trenchcoat = Trenchcoat.from_yaml(arguments.spec)
        model = read_model(trenchcoat.spec, arguments.store, arguments.config)
        needs = estimate(trenchcoat.spec, model)
        check_named_layers(trenchcoat.spec.attention, model.layers)
    except StageError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(redact(str(error)))}", highlight=False)
        return int(error.exit_code)
    except (InvalidTrenchcoatError, OSError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(redact(str(error)))}", highlight=False)
        return int(ExitCode.BAD_INPUT)
    console = Console()
    console.print(stage_table(trenchcoat.spec, needs))
    console.print(needs_table(trenchcoat.spec, needs, arguments.tflops))
    return 0


def read_model(spec: TrenchcoatSpec, store: Path | None, config: Path | None) -> ModelFacts:
    """The model's shape, from spec.model.source or from a config.json at hand.

    Raises:
        BadInputError: it is not the configuration of a Llama.
        StoreError: the store cannot be used.
        OSError: `config` cannot be read.
    """
    from trenchcoat_trainer.checkpoints.teacher import CONFIG, Teacher, open_teacher
    from trenchcoat_trainer.store import FolderStore, open_store

    if config is None:
        return open_teacher(spec, open_store(spec, store)).facts()
    try:
        json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise BadInputError(f"--config {config} is not JSON: {error}") from error
    with TemporaryDirectory() as folder:  # the file may have any name, a checkpoint's has one
        shutil.copyfile(config, Path(folder, CONFIG))
        return Teacher(source=str(config), store=FolderStore(Path(folder)), prefix="").facts()
