#!/usr/bin/env python3
"""What prefill and a decode step cost, in time and memory: the student beside its teacher.

    python benchmarks/decode --shapes smollm2 llama-1b llama-8b --batch 1 16 128 --context 1024 8192 32768
    python benchmarks/decode --shapes tiny --context 256 --steps 16      # without a GPU
    python benchmarks/decode --steps 0 --against CHECKOUT                # prefills, also by another code

The teacher is a Llama with SDPA: its prefill fills a dynamic cache, for which SDPA needs no mask, its step is
compiled as one graph over a static one. The student is what an export holds, its step by FixedDecoder,
compiled likewise; both have random weights. Each step runs in a process of its own. With --jobs several
compile at once, and take turns on the device. Prints one JSON object a line, with what it ran on, and adds
it to --out; what does not fit, beside others or alone, says so. --against measures students with the trainer
of another checkout too, as MODEL-before. --tables FILE makes tables and picture.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BEFORE = "-before"
"""Behind a model's name: with the code of the checkout --against names."""


def main() -> None:
    """Parse arguments and run every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["teacher", "window", "standard", "lolcats", "lolcats-shared"]
    )
    parser.add_argument("--shapes", nargs="+", default=["smollm2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--context", nargs="+", type=int, default=[1024], help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=64, help="timed; 0: prefill alone")
    parser.add_argument("--rounds", type=int, default=5, help="of prefill, timed; 0: steps alone")
    parser.add_argument("--device", help="by default a GPU where there is one")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="whose students are measured too")
    parser.add_argument("--jobs", type=int, default=1, help="cases that run side by side")
    parser.add_argument("--out", type=Path, help="file to which lines are added")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="of lines; measure nothing")
    parser.add_argument(
        "--turn", type=Path, metavar="FILE", help="several commands with one FILE take turns too"
    )
    parser.add_argument("--here", action="store_true", help="one case, in this process")
    arguments = parser.parse_args()
    if arguments.tables:
        import tables

        tables.write(arguments.tables)
    elif arguments.here:
        _run_here(arguments)
    else:
        _run_all(arguments, parser)


def _run_here(arguments: argparse.Namespace) -> None:
    import torch  # not where others do the work
    from case import Case, measure

    for context, batch in itertools.product(arguments.context, arguments.batch):
        case = Case(
            model=arguments.models[0],
            shape=arguments.shapes[0],
            batch=batch,
            context=context,
            steps=arguments.steps,
            rounds=arguments.rounds,
            device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=arguments.dtype,
            turn=arguments.turn,
        )
        print(json.dumps(measure(case)), flush=True)


def _run_all(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from case import MODELS, ROOM, SHAPES

    if unknown := {*arguments.models} - {*MODELS} | {*arguments.shapes} - {*SHAPES}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: {', '.join([*MODELS, *SHAPES])}")
    if arguments.steps + 4 > ROOM:
        parser.error(f"--steps may be {ROOM - 4} at most")
    together = [(arguments.context, arguments.batch)]
    if arguments.steps:  # what a step was compiled to stays in its process
        together = [([context], [batch]) for context in arguments.context for batch in arguments.batch]
    models = arguments.models
    if arguments.against:
        if not (arguments.against / "trainer").is_dir():
            parser.error(f"{arguments.against} is no checkout: it has no folder trainer")
        models = [*models, *(f"{model}{BEFORE}" for model in models if model != "teacher")]
    cases = [
        _words(shape, model, *sizes)
        for shape, sizes, model in itertools.product(arguments.shapes, together, models)
    ]
    kept = ["--steps", arguments.steps, "--rounds", arguments.rounds, "--dtype", arguments.dtype]
    if arguments.device:
        kept += ["--device", arguments.device]

    with tempfile.TemporaryDirectory() as folder:
        turn = arguments.turn or (Path(folder) / "turn" if arguments.jobs > 1 else None)
        kept += ["--turn", turn] if turn else []

        def run(case: list[Any]) -> list[dict[str, Any]]:
            *head, model, rest = case
            command = [*head, model.removesuffix(BEFORE), *rest, *kept]
            done = subprocess.run(
                [sys.executable, __file__, "--here", *map(str, command)],
                stdout=subprocess.PIPE,
                text=True,
                env=_environment(arguments.against) if model.endswith(BEFORE) else None,
            )
            found = [json.loads(line) | {"model": model} for line in done.stdout.splitlines()]
            return [*found, {"failed": done.returncode, "case": case}] if done.returncode else found

        def tell(found: dict[str, Any]) -> None:
            line = json.dumps(found)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(line + "\n")

        again = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for found in itertools.chain.from_iterable(pool.map(run, cases)):
                if turn and "does_not_fit" in found:
                    again.append(found)  # others held memory meanwhile
                else:
                    tell(found)
        for found in again:
            for other in run(_words(found["shape"], found["model"], [found["context"]], [found["batch"]])):
                tell(other)


def _environment(checkout: Path) -> dict[str, str]:
    """One in which that checkout's packages come before those installed."""
    folders = [str(checkout.resolve() / name) for name in ("trainer", "api", "s3", "reports")]
    folders += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def _words(shape: str, model: str, contexts: list[int], batches: list[int]) -> list[Any]:
    """The arguments that name some cases of one model."""
    return ["--shapes", shape, "--models", model, ["--context", *contexts, "--batch", *batches]]


if __name__ == "__main__":
    main()
