#!/usr/bin/env python3
"""Quality of linearization, measured on one GPU within ten minutes.

    python benchmarks/quality/corpus.py --out build/quality        # once, where there are apt and a network
    python benchmarks/quality --prepared build/quality             # where there is a GPU

Trains a teacher (a Llama of 12 layers and 88M parameters) on documentation packages of Debian and linearizes
it by the product's own stages, once for each variant of variants.py, several at a time. Results are
written after every variant, so that a run that is cut short has lost nothing: GPU.json and GPU.md
below --results (GPU_adamw with --teacher adamw, the ordinary optimiser); the same command, with the same
--work, goes on from there. `--smoke` is the same at toy size on any machine;
`--render FILE` writes the Markdown of a JSON file anew.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lanes import Lane
from report import render
from variants import SMOKE, Place, Size, variants

PACKAGES = ("torch", "triton", "transformers", "peft", "deepspeed")
RESULTS = Path(__file__).parent / "results"
CHECK = "check of the kernels"


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, default=Path("build/quality"), help="from corpus.py")
    parser.add_argument("--work", type=Path, default=Path("build/quality/run"), help="teacher and stores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds after which nothing is started")
    parser.add_argument(
        "--teacher", choices=["muon", "adamw"], default="muon", help="the optimiser that trains the teacher"
    )
    parser.add_argument("--lanes", type=int, default=3, help="variants that run at one time")
    parser.add_argument("--only", default="", help="regular expression of the variants to run")
    parser.add_argument("--smoke", action="store_true", help="toy size")
    parser.add_argument("--render", type=Path, metavar="JSON", help="only write the Markdown of this file")
    arguments = parser.parse_args()
    if arguments.render:
        arguments.render.with_suffix(".md").write_text(render(json.loads(arguments.render.read_text())))
        return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return Benchmark(arguments).run()


def smoke_size() -> Size:
    """Return the toy size, in the number format of the real one where there is a GPU."""
    import torch

    return replace(SMOKE, dtype=Size().dtype) if torch.cuda.is_available() else SMOKE


class Benchmark:
    """One run of everything."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._began = time.monotonic()
        self._arguments = arguments
        self._size = smoke_size() if arguments.smoke else Size()
        self._work = arguments.work.resolve()
        self._work.mkdir(parents=True, exist_ok=True)
        prepared = arguments.prepared.resolve()
        self._place = Place(
            teacher=self._work / "teacher", corpus=prepared / "corpus.jsonl.zst", store=self._work / "store"
        )
        self._tokenizer = prepared / "tokenizer"
        self._results: dict[str, Any] = {
            "command": "python " + " ".join(sys.argv),
            "size": asdict(self._size),
            "corpus": json.loads((prepared / "corpus.json").read_text()),
            "variants": [],
            "failed": [],
        }
        self._kept = self._work / "results.json"
        self._earlier = 0.0
        if self._kept.exists():
            earlier = json.loads(self._kept.read_text())
            self._results["variants"] = earlier["variants"]
            self._earlier = earlier["totalSeconds"]

    def run(self) -> int:
        """Train the teacher, run all variants that time suffices for, write the results."""
        lanes = [Lane(index, self._work) for index in range(self._arguments.lanes)]
        try:
            # While this process trains the teacher.
            lanes[0].submit(CHECK, None, "triton")
            self._describe_machine()
            self._results["teacher"] = self._teacher()
            self._write()
            self._run_variants(lanes)
        finally:
            for lane in lanes:
                lane.stop()
        self._write()
        print(self._file().with_suffix(".md").read_text())
        for item in self._results["failed"]:
            print(item)
        return 1 if self._results["failed"] else 0

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _describe_machine(self) -> None:
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
        versions = {"python": platform.python_version()}
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        self._results |= {"gpu": gpu, "cores": os.cpu_count(), "versions": versions}

    def _teacher(self) -> dict[str, Any]:
        from teacher import Recipe, read_tokens, train

        facts = self._place.teacher / "quality.json"
        if not facts.exists():
            import torch
            from transformers import AutoTokenizer

            recipe = Recipe(optimizer=self._arguments.teacher)
            if self._arguments.smoke:
                recipe = replace(
                    recipe, layers=self._size.layers, hidden_size=128, heads=2, kv_heads=1, batch_size=8,
                    intermediate_size=128, sequence_length=self._size.sequence_length, tokens=60_000,
                )  # fmt: skip
            tokens = read_tokens(
                self._place.corpus,
                self._tokenizer,
                self._size.held_out_percent,
                200 if self._arguments.smoke else None,
            )
            print(f"{len(tokens):,} tokens after {self._seconds():.0f} s", flush=True)
            vocabulary = len(AutoTokenizer.from_pretrained(self._tokenizer))
            found = train(recipe, tokens, vocabulary, self._tokenizer, self._place.teacher)
            facts.write_text(json.dumps(found))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        print(f"teacher after {self._seconds():.0f} s: {facts.read_text()}", flush=True)
        return json.loads(facts.read_text())

    def _run_variants(self, lanes: list[Lane]) -> None:
        wanted = [
            (f"{variant.group}: {variant.name}, {variant.tokens} tokens", variant)
            for variant in variants(self._size)
        ]
        have = [{key: item[key] for key in asdict(wanted[0][1])} for item in self._results["variants"]]
        waiting = [
            item
            for item in wanted
            if re.search(self._arguments.only, item[0]) and asdict(item[1]) not in have
        ]
        attention = self._wait_for_check(lanes[0])
        retried: set[str] = set()
        while self._seconds() < self._arguments.budget:
            for lane in lanes:
                if lane.running is None and waiting:
                    name, variant = waiting.pop(0)
                    chosen = "tiled" if name in retried else attention
                    print(f"{self._seconds():.0f} s: {name} ({chosen})", flush=True)
                    lane.submit(name, variant, chosen, self._size, self._place)
                elif lane.running is not None:
                    name, variant, chosen = lane.running
                    took = time.monotonic() - lane.started
                    result = lane.poll()
                    if result is None:
                        continue
                    if "error" in result:
                        print(f"{self._seconds():.0f} s: {name} failed: {result['error']}", flush=True)
                        self._results["failed"].append({"name": name, "attention": chosen, **result})
                        if chosen == "triton":
                            retried.add(name)
                            waiting.insert(0, (name, variant))
                        continue
                    told = result["report"]["perplexities"]
                    print(f"{self._seconds():.0f} s: {name}: {told}, {result['seconds']}", flush=True)
                    self._results["variants"].append(
                        {**asdict(variant), "attention": chosen, "wall": round(took, 1), **result}
                    )
                    self._write()
            if not waiting and all(lane.running is None for lane in lanes):
                break
        running = [lane.running[0] for lane in lanes if lane.running is not None]
        self._results["leftOut"] = running + [name for name, _ in waiting]

    def _wait_for_check(self, lane: Lane) -> str:
        result = None
        while result is None and self._seconds() < self._arguments.budget:
            result = lane.poll()
        self._results["kernels"] = result
        print(f"{self._seconds():.0f} s: {CHECK}: {result}", flush=True)
        return (result or {}).get("attention", "tiled")

    def _file(self) -> Path:
        gpu = self._results["gpu"].removeprefix("NVIDIA").strip().split(" ")[0].lower()
        name = "smoke" if self._arguments.smoke else gpu
        suffix = "" if self._arguments.teacher == "muon" else f"_{self._arguments.teacher}"
        return self._arguments.results / f"{name}{suffix}.json"

    def _write(self) -> None:
        self._results["totalSeconds"] = round(self._earlier + self._seconds(), 1)
        self._kept.write_text(json.dumps(self._results))
        self._arguments.results.mkdir(parents=True, exist_ok=True)
        self._file().write_text(json.dumps(self._results, indent=1) + "\n")
        self._file().with_suffix(".md").write_text(render(self._results))


if __name__ == "__main__":
    sys.exit(main())
