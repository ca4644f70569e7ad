#!/usr/bin/env python3
"""Attention transfer with the teacher's products in FP8, beside bf16: losses, errors, perplexity after it.

    python benchmarks/quality/float8.py --model build/forms --corpus build/quality

Preset shipped, all layers in one Cria, LoRA and stitch left out; every seed by both, one after the other in
this process, by the product's own stages. The folders are those that corpus.py and forms/prepare.py leave.
The Cria's loss is by the teacher that trained it; its errors and the perplexity are by the teacher in bf16.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from trenchcoat_api.artifacts import Artifact, Artifacts, Facts, Manifest
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TeacherProducts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.program import run_stage
from trenchcoat_trainer.runtime.stop import StopRequest

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "transformers")
BUCKET = "local"


def main() -> None:
    """Run every seed by both, and write after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("build/forms"), help="a Llama in a folder")
    parser.add_argument("--corpus", type=Path, default=Path("build/quality"), help="text, *.jsonl.zst or .gz")
    parser.add_argument("--work", type=Path, default=Path("build/float8"), help="specs and store")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="training tokens of an epoch")
    parser.add_argument("--held-out", type=int, default=131_072, help="held-out tokens")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    (arguments.work / "store" / BUCKET).mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "device": gpu,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "runs": [],
    }
    file = arguments.results / f"float8_{gpu.removeprefix('NVIDIA').strip().split(' ')[0].lower()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for products in TeacherProducts:
            results["runs"].append(
                {"seed": seed, "products": products.value} | run(seed, products, arguments)
            )
            file.write_text(json.dumps(results, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(results))
    print(file.with_suffix(".md").read_text())


def spec_of(seed: int, products: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the whole spec of a run."""
    model, corpus = (path.resolve().as_uri() for path in (arguments.model, arguments.corpus))
    return {
        "model": {"source": model},
        "data": {
            "source": f"{corpus}/*.jsonl.*",
            "tokens": arguments.tokens,
            "sequenceLength": arguments.sequence_length,
            "heldOutTokens": arguments.held_out,
        },
        "store": {
            "endpoint": "http://localhost:9000",
            "bucket": BUCKET,
            "credentialsSecretRef": {"name": "local"},
        },
        "preset": "shipped",
        "seed": seed,
        "layersPerCria": layers_of(arguments),
        "collect": {"batchSize": 16},
        "transfer": {"microBatchSize": 8, "teacherProducts": products},
        "criaLora": {"epochs": 0},
        "stitch": {"epochs": 0},
        "evaluate": {
            "batchSize": 16, "lengthMultiples": [], "recallSamples": 0, "samples": 0,
            "adaptedTeacher": "never",
        },
        "export": {"enabled": False},
    }  # fmt: skip


def layers_of(arguments: argparse.Namespace) -> int:
    return int(json.loads((arguments.model / "config.json").read_text())["num_hidden_layers"])


def run(seed: int, products: TeacherProducts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the stages in this process, as `trenchcoat run` would, and return their numbers."""
    resource = {"apiVersion": "trenchcoat.dev/v1alpha1", "kind": "Trenchcoat", "metadata": {"name": "float8"}}
    file, folder = arguments.work / f"{products.value}-{seed}.yaml", arguments.work / "store"
    file.write_text(yaml.safe_dump(resource | {"spec": spec_of(seed, products.value, arguments)}))
    artifacts = Artifacts(Trenchcoat.from_yaml(file).spec)
    (cria,) = crias = cria_ranges(layers_of(arguments), layers_of(arguments))
    seconds = {}
    for stage in (Stage.TOKENIZE, Stage.SHARD, Stage.COLLECT, Stage.CRIA, Stage.STITCH, Stage.EVALUATE):
        began = time.monotonic()
        index = cria.index if stage is Stage.CRIA else None
        run_stage(stage, file, cria=index, folder=folder, stop=StopRequest())
        seconds[stage.value] = round(time.monotonic() - began, 1)
    trained = facts_of(folder, artifacts.cria(cria))
    errors = [float(error) for error in trained.layer_errors.values()]
    rows = facts_of(folder, artifacts.evaluate(crias)).perplexities
    return {
        "losses": {name: float(loss) for name, loss in trained.losses.items()},
        "error": statistics.mean(errors),
        "largestError": max(errors),
        "perplexities": {row.name: float(row.perplexity) for row in rows},
        "seconds": seconds,
    }


def facts_of(folder: Path, artifact: Artifact) -> Facts:
    """Return what an artifact's manifest tells."""
    file = folder / BUCKET / artifact.manifest_path
    return Manifest.model_validate_json(file.read_text()).facts


def table(results: dict[str, Any]) -> str:
    """Return the results for people: every run, then FP8's distance from bf16 beside the seeds' own."""
    measures = {
        "transfer loss": lambda run: run["losses"]["transfer"],
        "mean error of attention": lambda run: run["error"],
        "perplexity after transfer": lambda run: run["perplexities"]["transfer"],
    }
    lines = [
        f"{results['device']}, torch {results['versions']['torch']}",
        "",
        f"| seed | products | {' | '.join(measures)} | the teacher's | seconds of the Cria |",
        "|---" * (len(measures) + 4) + "|",
    ]
    for run in results["runs"]:
        values = " | ".join(f"{measure(run):.5g}" for measure in measures.values())
        lines.append(
            f"| {run['seed']} | {run['products']} | {values} | {run['perplexities']['teacher']:.5g} | "
            f"{run['seconds']['cria']} |"
        )
    by = {(run["seed"], run["products"]): run for run in results["runs"]}
    seeds = [seed for seed, products in by if products == TeacherProducts.FLOAT8]
    plain = [by[seed, TeacherProducts.DTYPE] for seed in seeds]
    lines += ["", "| | float8 over bf16, by seed | bf16's largest over its smallest |", "|---|---|---|"]
    for name, measure in measures.items():
        ratios = ", ".join(
            f"{measure(by[seed, TeacherProducts.FLOAT8]) / measure(by[seed, TeacherProducts.DTYPE]):.5f}"
            for seed in seeds
        )
        values = [measure(run) for run in plain]
        lines.append(
            f"| {name} | {ratios} | {max(values) / min(values):.5f} |" if values else f"| {name} | |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
