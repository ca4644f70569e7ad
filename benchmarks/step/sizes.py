#!/usr/bin/env python3
"""Measure whole optimiser's steps of Crias of several Llamas, beside the teacher's forward and another build.

    python benchmarks/step/sizes.py --before FOLDER      # FOLDER: another checkout, `git worktree add`

Every step is the product's own phase: gradients of a batch, clipping, AdamW, schedule, best maps, and the
loss on the host. All builds and the teacher stay on the GPU and take turns; a number is the median over the
rounds. Writes results/sizes.{json,md} beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version

HERE = Path(__file__).resolve().parent
PACKAGES = ("trainer", "api", "s3", "reports")
ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama(layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": mlp,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "vocab_size": 1024,
        "rope_parameters": ROPE, **more,
    }  # fmt: skip


MODELS = {
    "SmolLM2-135M": llama(
        15, 576, 1536, 9, 3, rope_parameters={"rope_type": "default", "rope_theta": 100000.0}
    ),
    "Llama 3.2 1B": llama(8, 2048, 8192, 32, 8),
    "Llama 3.1 8B": llama(8, 4096, 14336, 32, 8),
    "Llama 3.1 70B": llama(10, 8192, 28672, 64, 8),
    "tiny": llama(2, 64, 128, 4, 2),
}
PHASES = ("transfer", "layerwise", "block")
BATCHES = {"1 x {tokens}": (1, 1), "8 x {tokens}": (8, 8), "the spec's default, 8 of 1 x {tokens}": (8, 1)}
"""Sequences of a batch, and of its micro-batches as the spec has them."""


class Worker:
    """One build in a process of its own."""

    def __init__(self, checkout: Path) -> None:
        own = [str(checkout / package) for package in PACKAGES]
        path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def tell(self, what: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(what) + "\n")

    def hear(self) -> Any:
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a build ended with {self._process.wait()}: see above")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


def spec_of(phase: str, batch: int, micro_batch: int, tokens: int) -> dict[str, Any]:
    sizes = {"batchSize": batch, "microBatchSize": micro_batch}
    objective = "block" if phase == "block" else "layerwise"
    return {
        "model": {"source": "file:///none"},
        "data": {"source": "file:///none", "tokens": 1000 * tokens, "sequenceLength": tokens},
        "store": {"endpoint": "http://localhost", "bucket": "none", "credentialsSecretRef": {"name": "none"}},
        "preset": "shipped",
        # Random weights have nothing to learn: what is timed must not diverge.
        "transfer": {**sizes, "learningRate": "1e-6", "plateau": {"minLearningRate": "1e-6"}},
        "criaLora": {**sizes, "learningRate": "1e-6", "objective": objective},
    }


def measure(workers: dict[str, Worker], model: str, size: tuple[int, int], args: Any) -> dict[str, Any]:
    """Return each phase's medians by build, and the teacher's."""
    (batch, micro_batch), found = size, {}
    common = {"config": MODELS[model], "batch": batch, "tokens": args.tokens, "do": "set up"}
    for phase in ("teacher", *args.phases):
        own = {"after": workers["after"]} if phase == "teacher" else workers
        spec = None if phase == "teacher" else spec_of(phase, batch, micro_batch, args.tokens)
        for worker in own.values():  # side by side: only what is timed takes turns
            worker.tell({**common, "phase": phase, "spec": spec, "warm_up": 5})
        told = {name: worker.hear() for name, worker in own.items()}
        times: dict[str, list[float]] = {name: [] for name in own}
        for _ in range(args.rounds):
            for name, worker in own.items():
                first = times[name][0] if times[name] else 50.0
                calls = max(2, min(20, int(args.milliseconds / first)))
                worker.tell({"do": "time", "times": calls})
                times[name].append(worker.hear())
        found[phase] = {
            name: {"ms": statistics.median(values[1:]), "rounds_ms": values, **told[name]}
            for name, values in times.items()
        }
        told = {name: round(x["ms"], 2) for name, x in found[phase].items()}
        print(
            f"{time.perf_counter() - STARTED:6.1f} s", model, size, phase, told, file=sys.stderr, flush=True
        )
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results for people."""
    lines = [
        f"Whole optimiser's steps, {results['hardware']}: {results['versions']}",
        "",
        "ms, and in brackets of the teacher's forward over as many tokens, measured in turn with them.",
        "",
        "| model | batch | teacher's forward | build | transfer | layerwise | block |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        teacher = row["phases"]["teacher"]["after"]["ms"]
        for build in results["builds"]:
            cells = []
            for phase in PHASES:
                ms = row["phases"].get(phase, {}).get(build, {}).get("ms")
                cells.append("" if ms is None else f"{ms:.1f} ({ms / teacher:.2f})")
            lines.append(
                f"| {row['model']}, {row['layers']} layers | {row['batch']} | {teacher:.1f} | {build} | "
                + " | ".join(cells) + " |"
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse arguments, measure, write after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, measured in turn")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[m for m in MODELS if m != "tiny"])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    batches = "0: one sequence; 1: 8 at once; 2: 8, micro-batches of 1, as by default"
    parser.add_argument("--batches", nargs="+", type=int, choices=range(3), default=range(3), help=batches)
    parser.add_argument("--tokens", type=int, default=1024, help="of a sequence")
    parser.add_argument("--rounds", type=int, default=6, help="the first is left out")
    parser.add_argument("--milliseconds", type=float, default=150.0, help="of a build's turn, about")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    workers = {"before": Worker(args.before.resolve())} if args.before else {}
    workers["after"] = Worker(HERE.parents[1])
    results: dict[str, Any] = {
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "transformers": transformers_version,
        },
        "builds": list(workers),
        "rows": [],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        for index in args.batches:
            words, size = list(BATCHES.items())[index]
            results["rows"].append({
                "model": model, "layers": MODELS[model]["num_hidden_layers"],
                "batch": words.format(tokens=args.tokens), "phases": measure(workers, model, size, args),
            })  # fmt: skip
            (args.out / "sizes.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "sizes.md").write_text(table(results))
    for worker in workers.values():
        worker.close()
    print(table(results))


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
