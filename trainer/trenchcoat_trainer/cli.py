"""The command `trenchcoat`."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.printing import OutputError, add_version
from trenchcoat_api.stages import DISTRIBUTED, WITHOUT_ADAPTED_TEACHER, Stage

from trenchcoat_trainer.local.command import add_run, at_least_one
from trenchcoat_trainer.local.planning import add_plan
from trenchcoat_trainer.local.rates import add_rates
from trenchcoat_trainer.reporting.command import add_report
from trenchcoat_trainer.runtime.importing import importing
from trenchcoat_trainer.runtime.processes import run_ranks, stage_arguments
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.store.credentials import RedactingFormatter

_HELP = {
    Stage.TOKENIZE: "check the model and the text, and pack the text into sequences of token ids",
    Stage.COLLECT: "run the teacher once and store its hidden states at every Cria boundary",
    Stage.SHARD: "cut the teacher's checkpoint into one shard per Cria",
    Stage.SELECT: "choose the layers that are to be wide, by one pass of the teacher",
    Stage.CRIA: "train one Cria: attention transfer, then LoRA",
    Stage.STITCH: "train adapters over the whole student, end to end",
    Stage.ADAPT: "train the same adapters over the teacher, to compare the student with",
    Stage.EVALUATE: "measure perplexity on held-out text",
    Stage.EXPORT: "write a Hugging Face checkpoint",
}

_OF_TRAINER = frozenset(
    {
        "numpy",
        "torch",
        "transformers",
        "peft",
        "deepspeed",
        "safetensors",
        "tokenizers",
        "zstandard",
        "datasets",
        "pyarrow",
    }
)
"""What the extra `trainer` of pyproject.toml brings; `plan` needs none of it."""
_INTERRUPTED = 128 + signal.SIGINT
"""As a shell tells of a program that Ctrl-C has ended."""
_NOT_INSTALLED = (
    "{} is not installed: this command needs the extra `trainer`, such as "
    "pip install 'trenchcoat[trainer,report]'"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or the process's own, and return its exit code."""
    arguments = build_parser().parse_args(argv)
    configure_log()
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:  # of stages a second one: what they have not saved yet is computed again
        logging.getLogger(__name__).error("ended at once; the same command goes on from what is saved")
        return _INTERRUPTED
    except OutputError as error:
        logging.getLogger(__name__).error("%s", error)
        return int(ExitCode.FAILED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _OF_TRAINER:
            raise
        logging.getLogger(__name__).error("%s", _NOT_INSTALLED.format(error.name))
        return int(ExitCode.BAD_INPUT)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="trenchcoat", description="Linearize large Llama models, one Cria at a time."
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_plan(commands)
    add_rates(commands)
    add_run(commands)
    add_report(commands)
    for stage in Stage:
        _add_stage(commands, stage)
    return parser


def configure_log() -> None:
    """One line a record: errors on stderr, everything else on stdout."""
    lines = logging.StreamHandler(sys.stdout)
    lines.addFilter(lambda record: record.levelno < logging.ERROR)
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    for handler in (lines, errors):
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[lines, errors], force=True)
    for chatty in ("httpx", "httpx2", "urllib3", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _add_stage(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", stage: Stage) -> None:
    command = commands.add_parser(stage.value, help=_HELP[stage], description=_HELP[stage])
    command.add_argument("--spec", type=Path, required=True, metavar="FILE", help="the Trenchcoat in YAML")
    command.add_argument(
        "--store", type=Path, metavar="DIR", help="keep the store in this folder in place of spec.store"
    )
    if stage is Stage.CRIA:
        command.add_argument("--cria", type=int, required=True, metavar="N", help="index of the Cria")
    if stage is Stage.COLLECT:
        command.add_argument(
            "--cria",
            type=int,
            metavar="N",
            help="with spec.collect.strategy Rolling: store what leaves this Cria, by its layers alone",
        )
    if stage in DISTRIBUTED:
        command.add_argument(
            "--processes",
            type=at_least_one,
            metavar="N",
            help="run as N processes of this machine, one for each of its GPUs (default: as this one alone)",
        )
    if stage is Stage.EVALUATE:
        command.add_argument(
            WITHOUT_ADAPTED_TEACHER,
            action="store_true",
            help="as if spec.evaluate.adaptedTeacher were never: where training the adapted teacher failed",
        )
    command.set_defaults(run=_run_stage, stage=stage, cria=None, processes=1, without_adapted_teacher=False)


def _run_stage(arguments: argparse.Namespace) -> int:
    stop = StopRequest()
    stop.listen()
    if arguments.processes > 1:
        if arguments.cria is not None:
            logging.getLogger(__name__).error(
                "--processes cannot be used with --cria: one process makes what leaves a Cria; leave it out"
            )
            return int(ExitCode.BAD_INPUT)
        command = stage_arguments(
            arguments.stage,
            arguments.spec,
            store=arguments.store,
            without_adapted_teacher=arguments.without_adapted_teacher,
        )
        program = [sys.executable, "-m", "trenchcoat_trainer"]
        return run_ranks([*program, *command], arguments.processes, stop=stop)
    # Idle threads of torch would otherwise spin: where processes share cores, that makes each several times
    # slower. Set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Late, because it loads torch, and a stop may be requested meanwhile.
    with importing():
        from trenchcoat_trainer.program import run_program

    return run_program(
        arguments.stage,
        arguments.spec,
        cria=arguments.cria,
        folder=arguments.store,
        stop=stop,
        without_adapted_teacher=arguments.without_adapted_teacher,
    )
