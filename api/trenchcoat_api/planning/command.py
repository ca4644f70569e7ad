"""What `trenchcoat plan` and `kubectl trenchcoat plan` share: their options, and how a plan is told."""

import argparse
import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from trenchcoat_api import texts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.plan import Given, Plan
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.tables import tables
from trenchcoat_api.spec import TrenchcoatSpec

_MOST = 1e12


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    command.add_argument("file", type=Path, metavar="FILE", help="the Trenchcoat in YAML")
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json, if the model is out of reach"
    )
    command.add_argument("--gpu", metavar="KIND", help="kind of the GPUs, such as h100-80gb or h200-141gb")
    command.add_argument(
        "--gpu-memory", type=_memory, metavar="BYTES", help="memory of a GPU, such as 80G; else the kind's"
    )
    command.add_argument(
        "--gpus",
        type=_count,
        metavar="N",
        help="GPUs for Crias; as many as the largest stage of the spec names unless given",
    )
    command.add_argument("--price", type=_price, metavar="N", help="what a GPU costs an hour")
    command.add_argument(
        "--rates", type=Path, metavar="FILE", help="rates in YAML, in place of those that were measured here"
    )
    command.add_argument(
        "-o", "--output", choices=("table", "json", "yaml"), default="table", help="how to tell it"
    )
    command.add_argument(
        "--force", action="store_true", help="exit with 0 though a stage cannot fit into its GPUs"
    )


def given(arguments: argparse.Namespace, complete: Callable[[str], bool]) -> Given:
    """What the options say; `complete` tells whether an artifact is in the store.

    Raises:
        RatesError: the rates cannot be used.
    """
    return Given(
        rates=Rates.load(arguments.rates),
        gpu=arguments.gpu,
        gpu_memory=arguments.gpu_memory,
        gpus=arguments.gpus,
        price=arguments.price,
        complete=complete,
    )


def read_config(file: Path) -> PlannedModel:
    """The teacher by its config.json, which may have any name.

    Raises:
        ValueError: it is not that of a Llama.
        OSError: it cannot be read.
    """
    try:
        fields = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--config {file} holds no JSON object: give a Llama's config.json")
    return PlannedModel.of_config(fields, f"--config {file}")


def tell(plan: Plan, spec: TrenchcoatSpec, arguments: argparse.Namespace, console: Console) -> int:
    """Print the plan; returns the exit code: that of bad input where a stage cannot fit, unless forced."""
    if arguments.output == "table":
        for table in tables(plan, spec, console.width):
            console.print(table)
        for note in plan.notes:
            console.print(f"[bold]note:[/] {escape(note)}", highlight=False)
    else:
        document = plan.model_dump(mode="json", by_alias=True)
        as_text = json.dumps(document, indent=2) if arguments.output == "json" else _yaml(document)
        console.out(as_text.rstrip("\n"), highlight=False)
    forced = arguments.force or spec.plan.force
    errors = Console(stderr=True, soft_wrap=True)
    for misfit in plan.misfits:
        word = "[bold yellow]warning:[/]" if forced else "[bold red]error:[/]"
        errors.print(f"{word} {escape(misfit.message)}", highlight=False)
    if plan.misfits and not forced:
        errors.print("--force, or spec.plan.force, goes on all the same", highlight=False)
        return int(ExitCode.BAD_INPUT)
    return int(ExitCode.OK)


def _yaml(document: object) -> str:
    return str(yaml.safe_dump(document, sort_keys=False))


def _memory(text: str) -> int:
    try:
        size = texts.quantity(text)
    except (ArithmeticError, ValueError):
        size = 0
    if not 0 < size < 10**15:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory: write bytes such as 80G or 79Gi")
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:7]) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs: write 1 to 100000")
    return int(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not isfinite(price) or not 0 <= price <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no price: write a number that is not negative")
    return price
