"""The command `kubectl trenchcoat`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from trenchcoat_api.planning.command import add_options
from trenchcoat_api.printing import OutputError, Printer, add_version

from trenchcoat_kubectl import commands, planning, reporting
from trenchcoat_kubectl.kubectl import Kubectl, PluginError

INTERRUPTED = 130
NAME = "name of the Trenchcoat"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or the process's own, and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.run(
            arguments, Kubectl(_flags(arguments)), Printer(highlight=False, soft_wrap=False)
        )
    except (PluginError, OutputError) as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # `| head` has seen enough; nothing more can be written
        return 1
    return code


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _flags(arguments: argparse.Namespace) -> list[str]:
    names = ("kubeconfig", "context", "namespace")
    return [f"--{name}={value}" for name in names if (value := getattr(arguments, name, None))]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of arguments, kubectl and console."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-n", "--namespace", help="namespace of the Trenchcoats")
    common.add_argument("--context", help="context of the kubeconfig")
    common.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig to use")
    parser = argparse.ArgumentParser(
        prog="kubectl trenchcoat", description="Watch and steer linearizations.", parents=[common]
    )
    add_version(parser)
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, run: object) -> argparse.ArgumentParser:
        made = subcommands.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run)
        return made

    status = add("status", "show stages and Crias with bars; all Trenchcoats without a NAME", commands.status)
    status.add_argument("name", nargs="?", metavar="NAME", help=NAME)
    status.add_argument("-w", "--watch", action="store_true", help="follow until it succeeds or stalls")
    status.add_argument(
        "-A", "--all-namespaces", action="store_true", help="of all namespaces, without a NAME"
    )

    logs = add("logs", "print the logs of what runs, or of one Cria or stage", commands.logs)
    logs.add_argument("name", metavar="NAME", help=NAME)
    logs.add_argument(
        "target", nargs="?", metavar="CRIA|STAGE", help="a Cria's number, or a stage such as collect"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="wait for its pods, and follow")
    logs.add_argument("--tail", type=int, default=-1, metavar="N", help="only the last N lines")

    suspend = add("suspend", "stop all Jobs after a checkpoint, which frees their GPUs", commands.suspend)
    suspend.add_argument("name", metavar="NAME", help=NAME)

    resume = add("resume", "go on from the last checkpoints", commands.resume)
    resume.add_argument("name", metavar="NAME", help=NAME)

    retry = add("retry", "start a failed Cria or stage again, with all its attempts", commands.retry)
    retry.add_argument("name", metavar="NAME", help=NAME)
    retry.add_argument("target", metavar="CRIA|STAGE", help="a Cria's number, or a stage such as collect")

    report = add("report", "write a report of a Trenchcoat, one HTML page, as it is now", reporting.report)
    report.add_argument("name", metavar="NAME", help=NAME)
    report.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write it (default: NAME-report.html)"
    )

    plan = add("plan", "print what a file would run and need, and what is complete already", planning.plan)
    add_options(plan)
    return parser


if __name__ == "__main__":
    sys.exit(main())
