#!/usr/bin/env python3
"""Student forms through the product's own stages: SmolLM2-135M-Instruct, by `trenchcoat run`, on one GPU.

    python benchmarks/quality/corpus.py --out build/quality                       # once
    python benchmarks/forms/prepare.py --corpus build/quality --out build/forms   # once
    python benchmarks/quality/students.py --model build/forms --corpus build/quality

One spec for each student below; they share a store, so that what two have in common is computed once. What a
run says at its end, and how long its stages took, goes to the results file after every run; table.py makes
the table for people of it. Of several `--other-text` each is a second held-out text of an evaluation of its
own; `--tasks` names a folder of tasks.py and needs lm-evaluation-harness (the extra `tasks`).
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
PACKAGES = ["torch", "triton", "transformers", "peft", "deepspeed"]
OTHER_TOKENS = 65_536
ONLY_OTHER_TEXT: dict[str, Any] = {"recallSamples": 0, "samples": 0, "lengthMultiples": []}
"""Of the evaluations of further texts: all else was measured with the first."""
LORA = {"rank": 8, "alpha": 16, "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
UNTRAINED_CRIAS = {"criaLora": {"epochs": 0}}
"""All adapters are trained end to end; the window form has nothing to train in attention transfer either."""
WINDOW = {"form": "window", "window": 256}
STUDENTS: dict[str, dict[str, Any]] = {
    "window": UNTRAINED_CRIAS | {"attention": WINDOW | {"wide": {"share": "0.25"}}},
    "constant": UNTRAINED_CRIAS | {"attention": WINDOW | {"wide": {"share": "0.25", "window": 1088}}},
    "crias": {"attention": WINDOW | {"wide": {"share": "0.25"}}},
    "lolcats": UNTRAINED_CRIAS
    | {"attention": {"form": "lolcats"}, "data": {"startPositions": {"share": "0.5"}}},
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
    parser.add_argument(
        "--other-text",
        type=Path,
        action="append",
        default=[],
        help="a file of text of another kind, to evaluate on too; may be given several times",
    )
    parser.add_argument("--tasks", type=Path, help="folder of tasks.py, to run teacher and student on")
    parser.add_argument("--no-export", action="store_true", help="leave out the checkpoint")
    parser.add_argument("--short", action="store_true", help="no sequences beyond 1024 tokens, in training")
    parser.add_argument("--no-adapted", action="store_true", help="leave out the adapted teacher")
    parser.add_argument("--stitch", type=json.loads, default={}, help="JSON merged into spec.stitch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="regular expression of the students to run")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    packages = PACKAGES + (["lm_eval"] if arguments.tasks else [])
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
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
            "source": f"{corpus}/corpus.jsonl.zst",
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
        spec["evaluate"]["otherText"] = other_text(arguments.other_text[0])
    if arguments.tasks:
        names = [yaml.safe_load(file.read_text())["task"] for file in sorted(arguments.tasks.glob("*.yaml"))]
        spec["evaluate"]["tasks"] = {"source": arguments.tasks.resolve().as_uri(), "names": names}
    spec["stitch"] |= arguments.stitch
    if arguments.short:
        spec["stitch"]["longSequences"] = {"share": "0"}
    for part, fields in settings.items():
        spec[part] = spec.get(part, {}) | fields
    return spec


def other_text(file: Path) -> dict[str, Any]:
    """Return spec.evaluate.otherText of a file."""
    return {"source": file.resolve().as_uri(), "tokens": OTHER_TOKENS}


def run(name: str, spec: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a spec to its end and return its summary, its seconds, and the other texts' figures."""
    begun = time.monotonic()
    summary = run_spec(name, spec, arguments.work)
    told = {"seconds": round(time.monotonic() - begun, 1), "spec": spec, "summary": summary, "otherTexts": {}}
    for file in arguments.other_text:
        if file != arguments.other_text[0]:
            evaluate = spec["evaluate"] | ONLY_OTHER_TEXT | {"otherText": other_text(file)}
            evaluate.pop("tasks", None)
            summary = run_spec(name, spec | {"evaluate": evaluate}, arguments.work)
        told["otherTexts"][file.name.partition(".")[0]] = {
            key: summary[f"other_{key}"] for key in ("perplexities", "errors")
        }
    return told


def run_spec(name: str, spec: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run a spec to its end and return its summary."""
    file, summary = work / f"{name}.yaml", work / f"{name}.json"
    resource = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat", "metadata": {"name": name}}
    file.write_text(yaml.safe_dump(resource | {"spec": spec}, sort_keys=False))
    command = [sys.executable, "-m", "trenchcoat_trainer", "run", file, "--summary", summary]
    subprocess.run([*command, "--store", work / "store"], check=True)
    return json.loads(summary.read_text())


if __name__ == "__main__":
    main()
