#!/usr/bin/env python3
"""What several GPUs of one host are worth to the stages that use them.

    python benchmarks/several_gpus                      # every part, with 1 rank and with all GPUs
    python benchmarks/several_gpus --parts stitch --ranks 2
    python benchmarks/several_gpus --toy                # the same on two ranks of a CPU, in minutes

Parts: collect (the pipeline over layers of 405B shapes, or 8B and 1B whole), stitch (ZeRO-3 beside plain
FSDP2, two layers of 405B shapes and 8B whole; one rank by itself), load (host memory while ZeRO-3's
partitions are filled), crias (14 Crias as GPUs come free), ranks (losses by the number of ranks; a rank
killed).
Each part has its own time limit, and what it has measured by then stays. Weights and text are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model import make_spec, shape, write_crias, write_teacher, write_text
from programs import Stitching, run_crias
from table import table
from timing import conditions, tell
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.data.layout import sequences_per_hidden_object
from trenchcoat_trainer.runtime.background import PENDING, THREADS
from trenchcoat_trainer.runtime.processes import start_ranks

HERE = Path(__file__).parent
LIMITS = {"collect": 180, "stitch": 300, "load": 300, "crias": 240, "ranks": 300}
"""Seconds that a part may take."""


class Setting:
    """What all parts share."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.ranks: list[int] = arguments.ranks
        self.is_toy: bool = arguments.toy
        self.out: Path = arguments.out.resolve()
        self.deadline = 0.0

    def size(self, name: str) -> str:
        """Return the size that is measured in place of `name`."""
        return "toy" if self.is_toy else name

    def start(self, program: str, count: int, *words: str, **variables: str) -> None:
        """Run a program of this folder on so many ranks; ends what takes longer than its part may.

        Raises:
            RuntimeError: it failed, or took too long.
        """
        command = [sys.executable, str(HERE / program), *words, "--out", str(self.out)]
        threads = str(max(1, len(os.sched_getaffinity(0)) // count))
        ranks = start_ranks(
            command, count, environment={"OMP_NUM_THREADS": threads, **os.environ, **variables}
        )
        try:
            while (code := ranks.poll()) is None:
                if time.monotonic() > self.deadline:
                    raise RuntimeError(f"{program} on {count} ranks was ended at its part's time limit")
                time.sleep(0.1)
        finally:
            ranks.kill()
        if code != 0:
            raise RuntimeError(f"{program} on {count} ranks ended with {code}")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--ranks", nargs="+", type=int, help="of each part in turn; 1, then one a GPU")
    parser.add_argument("--out", type=Path, help="results, a JSON object a line; with a table beside it")
    parser.add_argument(
        "--models", nargs="+", choices=["405b", "8b", "1b"], help="of collect and stitch; 1b is not stitched"
    )
    parser.add_argument("--toy", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--layers", type=int, default=19, help="of 405b in collect; the last is not run")
    parser.add_argument(
        "--zero", nargs="+", default=[], metavar="JSON", help="more settings of ZeRO-3 to measure in stitch"
    )
    parser.add_argument("--limit", type=float, help="seconds of each part")
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    arguments.ranks = arguments.ranks or sorted({1, gpus or 2})
    where = torch.cuda.get_device_name().lower().replace(" ", "-") if gpus else "cpu"
    arguments.out = arguments.out or HERE / "results" / f"{max(arguments.ranks)}x-{where}.jsonl"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not gpus:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(arguments, Path(folder))
        tell(setting.out, {"part": "conditions", "command": sys.argv[1:], **conditions()})
        for part in [name for name in PARTS if name in arguments.parts]:
            limit = arguments.limit or LIMITS[part]
            setting.deadline = time.monotonic() + limit
            began = time.monotonic()
            try:
                PARTS[part](setting)
            except RuntimeError as error:  # the other parts have their turn
                failed = True
                tell(setting.out, {"part": part, "failed": str(error)})
                print(f"{part}: {error}", file=sys.stderr)
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    results = [json.loads(line) for line in setting.out.read_text().splitlines()]
    text = table(results)
    setting.out.with_suffix(".md").write_text(text)
    print(text)
    raise SystemExit(failed)


def prepare(setting: Setting, name: str, config: Any, spec: TrenchcoatSpec) -> list[str]:
    """Write text and spec; returns the arguments that name them."""
    folder = setting.folder / name
    write_text(folder, spec, config)
    file = folder / "spec.yaml"
    body = spec.model_dump(by_alias=True, mode="json", exclude_none=True)
    document = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat", "metadata": {"name": "gpus"}}
    trenchcoat = Trenchcoat.model_validate(document | {"spec": body})
    file.write_text(trenchcoat.model_dump_json(by_alias=True, exclude_none=True))  # which is YAML, too
    return ["--spec", str(file), "--store", str(folder)]


def collect(setting: Setting) -> None:
    """Time the pipeline of the collect stage, over the same layers on any number of ranks."""
    tokens = 128 if setting.is_toy else 1024
    # Layers, of a Cria, sequences; an object of 405B holds one.
    cases = {"405b": (setting.arguments.layers, 9, 64), "8b": (32, 8, 512), "1b": (16, 8, 2048)}
    # Objects before the clock starts: until there is a graph, and pinned memory for all that may wait.
    warm_up = 0 if setting.is_toy else PENDING + THREADS
    for name in setting.arguments.models or ["405b"]:
        layers, per_cria, sequences = (5, 2, 96) if setting.is_toy else cases[name]
        size = setting.size(name)
        for ranks in setting.ranks:
            folder = setting.folder / f"collect-{name}-{ranks}"
            folder.mkdir()
            config = shape(size, layers, tokens)
            warm = warm_up * sequences_per_hidden_object(tokens, config.hidden_size, "bfloat16")
            spec = make_spec(folder, layers_per_cria=per_cria, sequences=sequences + warm, tokens=tokens)
            words = prepare(setting, folder.name, config, spec)
            words += ["--size", size, "--layers", str(layers), "--warm-up", str(warm_up)]
            setting.start("collecting.py", ranks, *words)
            shutil.rmtree(folder)  # gigabytes


def stitch(setting: Setting) -> None:
    """Time the stitch's steps: two layers of 405B shapes as 24 small GPUs hold them, then 8B as it fits."""
    tokens = 128 if setting.is_toy else 1024
    steps = 9
    cases = [("405b", 2, "nothing"), ("8b", 4 if setting.is_toy else 32, "auto")]
    wanted = setting.arguments.models or [name for name, *_ in cases]
    for name, layers, held in (case for case in cases if case[0] in wanted):
        size = setting.size(name)
        folder = setting.folder / f"stitch-{name}"
        folder.mkdir()
        settings = {"batchSize": 16, "microBatchSize": 4}
        spec = make_spec(folder, layers_per_cria=layers, sequences=16 * steps, tokens=tokens, stitch=settings)
        words = prepare(setting, folder.name, shape(size, layers, tokens), spec)
        write_crias(folder, spec)
        for ranks in sorted(setting.ranks, reverse=True):
            engines = ["alone"] if ranks == 1 else ["fsdp2", "zero3"]
            more = ["--size", name, "--held", held, "--engines", *engines]
            if ranks > 1 and setting.arguments.zero:
                more += ["--zero", *setting.arguments.zero]
            setting.start("stitching.py", ranks, *words, *more)


def load(setting: Setting) -> None:
    """See what a rank's host holds beside its partition while a student is loaded."""
    for ranks in setting.ranks:
        name = f"load-{ranks}"
        folder = setting.folder / name
        folder.mkdir()
        layers = 6
        spec = make_spec(folder, layers_per_cria=layers, sequences=8, tokens=128)
        words = prepare(setting, name, shape("narrow", layers, 128), spec)
        write_crias(folder, spec)
        # Memory that is freed goes back to the system, and is not counted.
        setting.start("loading.py", ranks, *words, MALLOC_MMAP_THRESHOLD_="65536")


def programs_folder(setting: Setting) -> tuple[Path, Path]:
    """Return spec and store of a run of SmolLM2's shape in 14 Crias; written at the first call."""
    folder = setting.folder / "programs"
    if not folder.exists():
        folder.mkdir()
        tokens, sequences = (128, 192) if setting.is_toy else (512, 384)
        layers = 4 if setting.is_toy else 28
        config = shape(setting.size("smollm2"), layers, tokens)
        batches = {"batchSize": 8, "microBatchSize": 4}
        spec = make_spec(
            folder,
            layers_per_cria=2,
            sequences=sequences,
            tokens=tokens,
            stitch=batches | {"epochs": 1, "lora": {"dropout": "0"}},
            transfer=batches | {"epochs": 1},
            criaLora=batches | {"epochs": 1},
            evaluate={"adaptedTeacher": "never"},
        )
        prepare(setting, "programs", config, spec)
        write_teacher(folder, config, TORCH_DTYPES[spec.dtype])
    return folder / "spec.yaml", folder


def crias(setting: Setting) -> None:
    """Train 14 Crias as GPUs come free, on as many GPUs as there are."""
    tell(setting.out, run_crias(*programs_folder(setting), max(setting.ranks), setting.deadline))


def ranks(setting: Setting) -> None:
    """Compare losses by the number of ranks, kill one, and go on with another number."""
    spec_file, store = programs_folder(setting)
    if not (store / "logs").exists():
        run_crias(spec_file, store, max(setting.ranks), setting.deadline)
    folder = setting.folder / "ranks"
    folder.mkdir()
    stitching = Stitching(spec_file, store, folder, setting.deadline)
    curves = stitching.curves(setting.ranks)
    tell(setting.out, curves)
    most, first = max(setting.ranks), str(setting.ranks[0])
    if most > 1:
        tell(setting.out, stitching.kill(most, setting.ranks[0], curves["runs"][first]["curve"]))


PARTS: dict[str, Callable[[Setting], None]] = {
    "collect": collect,
    "stitch": stitch,
    "load": load,
    "crias": crias,
    "ranks": ranks,
}

if __name__ == "__main__":
    main()
