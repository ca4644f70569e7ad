"""The command `trenchcoat plan`: what a spec would run and what it would need, before anything starts."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from trenchcoat_api.artifacts import Artifacts, ModelFacts
from trenchcoat_api.estimate import TERAFLOPS, Estimate, estimate
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError, StageError


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
    except StageError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        return int(error.exit_code)
    except (InvalidTrenchcoatError, OSError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
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
    from trenchcoat_trainer.checkpoints.teacher import Teacher, open_teacher
    from trenchcoat_trainer.store import FolderStore, open_store

    if config is None:
        return open_teacher(spec, open_store(spec, store)).facts()
    try:
        json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise BadInputError(f"--config {config} is not JSON: {error}") from error
    return Teacher(source=str(config), store=FolderStore(config.parent), prefix="").facts()


def stage_table(spec: TrenchcoatSpec, needs: Estimate) -> Table:
    """One row a stage."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "runs as", "GPUs", "leaves", "artifact"):
        table.add_column(column)
    artifacts = Artifacts(spec)
    crias = list(needs.crias)
    collect, stitch = spec.collect, spec.stitch
    table.add_row("tokenize", "Job", "-", f"{needs.tokens:,} tokens", artifacts.tokenize.key)
    table.add_row(
        "collect",
        f"PyTorchJob, {collect.nodes} pods",
        str(collect.nodes * collect.gpus_per_node),
        f"{_bytes(needs.activation_bytes)} of activations at {len(crias) - 1} boundaries",
        artifacts.collect.key,
    )
    table.add_row("shard", "Job", "-", f"{_bytes(needs.weight_bytes)} of weights", artifacts.shard.key)
    table.add_row(
        "cria",
        f"{len(crias)} Jobs, at most {min(len(crias), spec.scheduling.max_parallel_crias)} at a time",
        "1 each",
        f"feature maps and adapters of layers {crias[0]} to {crias[-1]}",
        ", ".join(artifacts.cria(cria).key[:6] for cria in crias[:2]) + ", ...",
    )
    table.add_row(
        "stitch",
        f"PyTorchJob, {stitch.nodes} pods",
        str(stitch.nodes * stitch.gpus_per_node),
        "end-to-end adapters",
        artifacts.stitch(crias).key,
    )
    if spec.evaluate.enabled:
        table.add_row("evaluate", "Job", "1", "perplexities", artifacts.evaluate(crias).key)
    if spec.export.enabled:
        table.add_row(
            "export", "Job", "-", f"{_bytes(needs.weight_bytes)} checkpoint", artifacts.export(crias).key
        )
    return table


def needs_table(spec: TrenchcoatSpec, needs: Estimate, teraflops: float) -> Table:
    """What it costs."""
    table = Table(title="Needs", title_justify="left", show_header=False)
    table.add_row("store", _bytes(needs.activation_bytes + 2 * needs.weight_bytes))
    table.add_row("GPU memory for a Cria's weights", _bytes(needs.cria_weight_bytes))
    table.add_row(
        f"GPU-hours of collection, at least, at {teraflops:.0f} TFLOP/s",
        f"{needs.gpu_hours(needs.collect_flop, teraflops):.2f}",
    )
    hours = needs.gpu_hours(needs.cria_flop, teraflops)
    table.add_row(
        f"GPU-hours of all Crias, at least ({spec.transfer.epochs} + {spec.cria_lora.epochs} epochs)",
        f"{hours:.2f}",
    )
    table.add_row("decode state of a sequence (fp32)", _bytes(needs.decode_state_bytes))
    table.add_row("smaller than a key/value cache from", f"{needs.cache_tokens:,} tokens")
    return table


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
