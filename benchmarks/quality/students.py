#!/usr/bin/env python3
"""Student forms through the product's own stages: SmolLM2-135M-Instruct, by `trenchcoat run`, on one GPU.

    python benchmarks/quality/corpus.py --out build/quality                       # once
    python benchmarks/forms/prepare.py --corpus build/quality --out build/forms   # once
    python benchmarks/quality/students.py --model build/forms --corpus build/quality

One spec for each student below; they share a store, so that what two have in common is computed once. What a
run says at its end, and how long its stages took, goes to the results file after every run.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

RESULTS = Path(__file__).parent / "results" / "students_h200.json"
PACKAGES = ("torch", "triton", "transformers", "peft", "deepspeed")
LORA = {"rank": 8, "alpha": 16, "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
UNTRAINED_CRIAS = {"criaLora": {"epochs": 0}}
"""All tokens go to the stitch: the window form has nothing to train in attention transfer."""
WINDOW = {"form": "window", "window": 256}
STUDENTS: dict[str, dict[str, Any]] = {
    "window": UNTRAINED_CRIAS | {"attention": WINDOW | {"wide": {"share": "0.25"}}},
    "constant": UNTRAINED_CRIAS | {"attention": WINDOW | {"wide": {"share": "0.25", "window": 1088}}},
    "crias": {"attention": WINDOW | {"wide": {"share": "0.25"}}},
    "lolcats": {"attention": {"form": "lolcats"}, "data": {"startPositions": {"share": "0.5"}}},
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("build/forms"), help="from forms/prepare.py")
    parser.add_argument("--corpus", type=Path, default=Path("build/quality"), help="from corpus.py")
    parser.add_argument("--work", type=Path, default=Path("build/students"), help="specs and store")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="training tokens of each phase")
    parser.add_argument("--held-out", type=int, default=131_072, help="held-out tokens")
    parser.add_argument("--samples", type=int, default=64, help="samples of each recall test")
    parser.add_argument("--other-text", type=Path, help="a file of text of another kind, to evaluate on too")
    parser.add_argument("--no-export", action="store_true", help="leave out the checkpoint")
    parser.add_argument("--short", action="store_true", help="no sequences beyond 1024 tokens, in training")
    parser.add_argument("--no-adapted", action="store_true", help="leave out the adapted teacher")
    parser.add_argument("--stitch", type=json.loads, default={}, help="JSON merged into spec.stitch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="regular expression of the students to run")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "students": {},
    }
    for name, settings in STUDENTS.items():
        if re.search(arguments.only, name):
            results["students"][name] = run(name, spec_of(settings, arguments), arguments)
            arguments.results.write_text(json.dumps(results, indent=1) + "\n")


def spec_of(settings: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the whole spec of a student."""
    model, corpus = (path.resolve().as_uri() for path in (arguments.model, arguments.corpus))
    layers = json.loads((arguments.model / "config.json").read_text())["num_hidden_layers"]
    adapted = "never" if arguments.no_adapted else "always"
    spec: dict[str, Any] = {
        "model": {"source": model},
        "data": {
            "source": f"{corpus}/*.jsonl.zst",
            "tokens": arguments.tokens,
            "sequenceLength": 1024,
            "heldOutTokens": arguments.held_out,
        },
        "store": {
            "endpoint": "http://localhost:9000",
            "bucket": "local",
            "credentialsSecretRef": {"name": "local"},
        },
        "preset": "standard",
        "seed": arguments.seed,
        "layersPerCria": layers,
        "collect": {"batchSize": 16},
        "evaluate": {"batchSize": 16, "recallSamples": arguments.samples, "adaptedTeacher": adapted},
        "export": {"enabled": not arguments.no_export},
        "transfer": {"epochs": 1, "microBatchSize": 8},
        "criaLora": {
            "epochs": 1, "objective": "block", "learningRate": "1e-3", "microBatchSize": 8, "lora": LORA,
        },
        "stitch": {
            "epochs": 1, "batchSize": 8, "microBatchSize": 8, "lora": LORA,
        },
    }  # fmt: skip
    if arguments.other_text:
        spec["evaluate"]["otherText"] = {"source": arguments.other_text.resolve().as_uri(), "tokens": 65_536}
    spec["stitch"] |= arguments.stitch
    if arguments.short:
        spec["stitch"]["longSequences"] = {"share": "0"}
    for part, fields in settings.items():
        spec[part] = spec.get(part, {}) | fields
    return spec


def run(name: str, spec: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a spec to its end and return its summary and the seconds that it took."""
    file, summary = arguments.work / f"{name}.yaml", arguments.work / f"{name}.json"
    resource = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat", "metadata": {"name": name}}
    file.write_text(yaml.safe_dump(resource | {"spec": spec}, sort_keys=False))
    begun = time.monotonic()
    command = [sys.executable, "-m", "trenchcoat_trainer", "run", file, "--summary", summary]
    subprocess.run([*command, "--store", arguments.work / "store"], check=True)
    told = {"seconds": round(time.monotonic() - begun, 1), "spec": spec}
    return told | {"summary": json.loads(summary.read_text())}


if __name__ == "__main__":
    main()
