"""The command `trenchcoat run`."""

import argparse
from pathlib import Path

from trenchcoat_api.printing import Printer

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.reporting.command import fail
from trenchcoat_trainer.runtime.stop import StopRequest


def add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "run every stage on this machine, without a cluster; a second call goes on where the first ended"
    command = commands.add_parser("run", help=text, description=text)
    command.add_argument("spec", type=Path, metavar="FILE", help="the Trenchcoat in YAML")
    command.add_argument(
        "--store",
        type=Path,
        default=Path("build/store"),
        metavar="DIR",
        help="folder in place of the S3 store; s3://BUCKET/PATH is DIR/BUCKET/PATH (default: build/store)",
    )
    command.add_argument(
        "--parallel-crias",
        type=at_least_one,
        default=None,
        metavar="N",
        help="Crias trained at one time (default: as many as fit on each GPU, up to 4, or one a CPU core)",
    )
    command.add_argument("--summary", type=Path, metavar="FILE", help="also write the final numbers as JSON")
    command.set_defaults(run=_run)


def at_least_one(text: str) -> int:
    """An option's value that counts what there must be one of."""
    if not text.isdecimal() or int(text[:7]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    stop = StopRequest()
    stop.listen()
    # Late, because it loads much, and a stop may be requested meanwhile.
    from trenchcoat_trainer.local.run import LocalRunError, run_locally

    console = Printer()
    try:
        if arguments.summary is not None:  # before hours of work, not after
            _try_to_write(arguments.summary)
        result = run_locally(
            arguments.spec,
            store=arguments.store,
            parallel_crias=arguments.parallel_crias,
            console=console,
            stop=stop,
        )
    except (LocalRunError, StageError) as error:
        return fail(str(error), int(error.exit_code))
    if result.summary is not None:
        console.print(result.summary.render())
        if arguments.summary:
            arguments.summary.write_text(result.summary.to_json())
    if result.export is not None:
        console.print(
            "\nThe student, for AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True):\n"
            f"  {result.export}",
            highlight=False,
            soft_wrap=True,
        )
    if result.report is not None:
        console.print(f"The report:\n  {result.report}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Logs of the stages:\n  {arguments.store / 'logs'}", highlight=False, soft_wrap=True)
    return 0


def _try_to_write(file: Path) -> None:
    """Make the folder of a file, and see that the file can be written; what it holds stays.

    Raises:
        BadInputError: it cannot.
    """
    was_there = file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise BadInputError(
            f"--summary {file} cannot be written ({error.strerror}): name another file"
        ) from error
    if not was_there:
        file.unlink()
