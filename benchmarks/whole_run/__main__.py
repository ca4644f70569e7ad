#!/usr/bin/env python3
"""Where the seconds of a whole run go, by `trenchcoat run`, of this checkout or of others beside it.

    python benchmarks/whole_run --spec examples/tiny.yaml --store build/store
    python benchmarks/whole_run --model FOLDER --corpus FOLDER --tokens 1000000
    python benchmarks/whole_run ... --tree before=../other-checkout --tree after=.

A run begins with a copy of what `--store` has, and ends with the table of perplexities. Told are the seconds
from the command to its end, those of each stage, and the CPU's of all processes together, which depend less
on what else the machine does.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "s3", "reports", "trainer")
PACKAGES = ("torch", "triton", "transformers", "peft", "deepspeed")
EVENT = re.compile(r"^(?P<name>[a-z]+(?:-\d+)?): (?P<what>started|complete in .*)$")


def main() -> int:
    """Run every tree as often as asked for, in turn, and write what it took."""
    arguments = parse()
    trees = dict(pair.split("=", 1) for pair in arguments.tree) or {"this": str(REPO)}
    results: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "runs": []}
    failed = 0
    for number in range(arguments.repeat):
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory(prefix="whole-run-") as folder:
                told = run(Path(tree).resolve(), arguments, Path(folder))
                logs = Path(folder, "store", "logs")
                if arguments.logs and logs.exists():
                    shutil.copytree(logs, arguments.logs / f"{name}-{number}", dirs_exist_ok=True)
            failed += told["code"] != 0
            results["runs"].append({"tree": name} | told)
            print(table(results["runs"]), flush=True)
            if arguments.results:
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                arguments.results.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
                arguments.results.with_suffix(".md").write_text(table(results["runs"]) + "\n")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, help="a Trenchcoat; else one of --model and --corpus is made")
    parser.add_argument("--store", type=Path, help="a folder store with the teacher and the text of --spec")
    parser.add_argument("--model", type=Path, help="a Llama in a folder, as Hugging Face lays it out")
    parser.add_argument("--corpus", type=Path, help="a folder with text, *.jsonl.zst")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each phase (default: 1000000)")
    parser.add_argument(
        "--tree", action="append", default=[], metavar="NAME=FOLDER", help="a checkout to run"
    )
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop a run that takes longer")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each tree, in turn")
    parser.add_argument("--results", type=Path, metavar="FILE", help="also write FILE.json and FILE.md")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the stages print")
    arguments = parser.parse_args()
    if (arguments.spec is None) == (arguments.model is None or arguments.corpus is None):
        parser.error("give --spec, or both of --model and --corpus")
    return arguments


def machine() -> dict[str, Any]:
    """What it ran on, and with what."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = []
    if shutil.which(query[0]):
        gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {
        "gpus": gpus,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": found,
    }


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run(tree: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the spec by the code of a tree, in a store of its own, and tell what it took."""
    spec, store, summary = folder / "trenchcoat.yaml", folder / "store", folder / "summary.json"
    if arguments.spec is not None:
        spec.write_bytes(arguments.spec.read_bytes())
    else:
        spec.write_text(yaml.safe_dump(spec_of(arguments), sort_keys=False))
    bucket = yaml.safe_load(spec.read_text())["spec"]["store"]["bucket"]
    for part in ("teachers", "corpora"):
        if arguments.store is not None and (arguments.store / bucket / part).exists():
            shutil.copytree(arguments.store / bucket / part, store / bucket / part)
    # Before what is there: packages may lie on it too.
    paths = [*(str(tree / name) for name in FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "trenchcoat_trainer", "run", spec, "--store", store, "--summary", summary],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
    )
    limit = threading.Timer(arguments.limit or threading.TIMEOUT_MAX, process.terminate)
    limit.daemon = True
    limit.start()
    stages: dict[str, list[float]] = {}
    for line in process.stdout or ():
        sys.stdout.write(line)
        if found := EVENT.match(line):
            stages.setdefault(found["name"], []).append(round(time.monotonic() - began, 2))
    code = process.wait()
    limit.cancel()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "code": code,
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "stages": stages,
        "perplexities": json.loads(summary.read_text())["perplexities"] if summary.exists() else {},
    }


def spec_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """LoLCATs of a small model in two Crias, so many tokens for each of its three phases."""
    config = json.loads((arguments.model / "config.json").read_text())
    lora = {"rank": 8, "alpha": 16}
    spec = {
        "model": {"source": arguments.model.resolve().as_uri()},
        "data": {
            "source": f"{arguments.corpus.resolve().as_uri()}/*.jsonl.zst",
            "tokens": arguments.tokens,
            "sequenceLength": 1024,
            "heldOutTokens": 131_072,
        },
        "store": {
            "endpoint": "http://localhost:9000",
            "bucket": "local",
            "credentialsSecretRef": {"name": "local"},
        },
        "preset": "shipped",
        "layersPerCria": -(-config["num_hidden_layers"] // 2),
        "collect": {"batchSize": 16},
        "transfer": {"epochs": 1, "microBatchSize": 8},
        "criaLora": {
            "epochs": 1,
            "objective": "block",
            "learningRate": "1e-3",
            "microBatchSize": 8,
            "lora": lora,
        },
        "stitch": {"epochs": 1, "batchSize": 8, "microBatchSize": 8, "learningRate": "1e-3", "lora": lora},
        "evaluate": {"batchSize": 16, "adaptedTeacher": "never"},
    }
    return {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": "whole-run"},
        "spec": spec,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Seconds of each stage, a column for each run: from its start to its end; Crias of a run together."""
    names = list(dict.fromkeys(_stage(name) for run in runs for name in run["stages"]))
    rows = [["seconds", *(run["tree"] for run in runs)], ["---", *("---:" for _ in runs)]]
    for name in names:
        rows.append([name, *(_span(run, name) for run in runs)])
    rows.append(["whole run", *(f"{run['seconds']:.1f}" for run in runs)])
    rows.append(["CPU, all processes", *(f"{run['cpu_seconds']:.1f}" for run in runs)])
    rows.append(["exit code", *(str(run["code"]) for run in runs)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _stage(name: str) -> str:
    return name.partition("-")[0]


def _span(run: dict[str, Any], stage: str) -> str:
    times = [times for name, times in run["stages"].items() if _stage(name) == stage and len(times) == 2]
    return f"{max(end for _, end in times) - min(start for start, _ in times):.1f}" if times else "-"


if __name__ == "__main__":
    sys.exit(main())
