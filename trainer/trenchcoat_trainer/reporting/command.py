"""The command `trenchcoat report`: the report of a run, written anew from what is in its store."""

import argparse
import glob
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from trenchcoat_api import texts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.printing import Printer
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.store.credentials import redact

FOLDER = Path("build/store")


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "write a run's report, one HTML page, from what is in its store; starts nothing"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument(
        "run_of",
        metavar="FILE|NAME",
        help="the Trenchcoat in YAML; or the name of one that has run on this machine, for its latest report",
    )
    command.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help=f"folder in place of the S3 store; for a NAME, where to look (default: {FOLDER})",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="also write it here (default for S3: NAME-report.html)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Printer()
    try:
        page, store_path = _page(arguments)
        output = arguments.output
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(page)
    except StageError as error:
        return fail(str(error), int(error.exit_code))
    except (InvalidTrenchcoatError, OSError, ValueError) as error:
        return fail(texts.fault(error), int(ExitCode.BAD_INPUT))
    console.print(f"The report:\n  {output or store_path}", markup=False, highlight=False, soft_wrap=True)
    return int(ExitCode.OK)


def fail(message: str, code: int) -> int:
    """Say on stderr why a command failed; returns its exit code."""
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(redact(message))}", highlight=False, soft_wrap=True
    )
    return code


def _page(arguments: argparse.Namespace) -> tuple[bytes, Path | None]:
    """The page, and the file that it stands in, where a folder stands for the store."""
    file = Path(arguments.run_of)
    if not file.exists() and file.name == arguments.run_of and not file.suffix:
        found = latest(arguments.store or FOLDER, arguments.run_of)
        return found.read_bytes(), found
    # Late, as it loads more than a command that starts a stage should wait for.
    from trenchcoat_trainer.reporting.writing import missing, open_reporter

    if why := missing():
        raise BadInputError(why)
    trenchcoat = Trenchcoat.from_yaml(file)
    reporter = open_reporter(trenchcoat, file, arguments.store)
    reporter.write()
    page = reporter.gatherer.store.read(reporter.place.page_path)
    if arguments.store is None and arguments.output is None:
        arguments.output = Path(f"{trenchcoat.metadata.name}-report.html")
    return page, reporter.page_file


def latest(folder: Path, name: str) -> Path:
    """The report of this name that was written last below a folder that stands for the store.

    Raises:
        BadInputError: there is none.
    """
    from trenchcoat_api.history import REPORTS

    from trenchcoat_trainer.reporting.places import PAGE

    found = list(folder.glob(f"**/{REPORTS}{glob.escape(name)}/*/{PAGE}"))
    if not found:
        raise BadInputError(
            f"{folder} has no report of a Trenchcoat {name}, and no file is called so: name its YAML file, "
            "or the folder of its store with --store; of one on a cluster tells kubectl trenchcoat report"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
