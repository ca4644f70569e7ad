"""The linearizations that benchmarks/quality compares, and running one of them by the product's stages."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALL_LAYERS = 0
"""Stands for every layer of the model in one Cria."""
FAULTS = {
    "normedResidual": "normed input of a Cria's first layer as its residual",
    "oneSchedule": "one schedule and one best checkpoint for all layers, on their mean loss",
    "bf16Maps": "feature maps and AdamW's moments rounded to bf16 after every step",
}
STAGES = ("tokenize", "shard", "collect", "cria", "stitch", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large everything is; the second set is for trying the benchmark out on a CPU."""

    layers: int = 12
    many: int = 4_000_000
    few: int = 1_000_000
    sequence_length: int = 1024
    held_out_tokens: int = 262_144
    held_out_percent: int = 2
    window: int = 64
    feature_dim: int = 64
    dtype: str = "bfloat16"
    batch_size: int = 8
    crias: tuple[int, ...] = (1, 3)


SMOKE = Size(
    layers=4, many=16_384, few=8_192, sequence_length=128, held_out_tokens=2_048, window=16, feature_dim=16,
    dtype="float32", crias=(1, 2),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One linearization: what differs from the others."""

    name: str
    group: str
    """The table it belongs to."""
    tokens: int
    """Tokens of each phase that is switched on; every phase makes one pass."""
    layers_per_cria: int = ALL_LAYERS
    transfer: dict[str, Any] = field(default_factory=dict)
    cria_lora: dict[str, Any] | None = None
    """Settings of LoRA by Cria; None leaves the phase out."""
    stitch: dict[str, Any] | None = None
    """Settings of the stitch; None leaves it out."""
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a variant finds its inputs and keeps its artifacts."""

    teacher: Path
    corpus: Path
    store: Path


def lora(rank: int, *modules: str) -> dict[str, Any]:
    """Return adapters of `rank`, scaled by 2, on the projections named by their first letters."""
    return {"rank": rank, "alpha": 2 * rank, "targetModules": [f"{module}_proj" for module in modules]}


def variants(size: Size) -> list[Variant]:
    """Return all variants, the most wanted first: those that time does not suffice for are left out."""
    many, few = size.many, size.few
    published = {"learningRate": "1e-4", "lora": lora(8, *"qkvo")}
    better = {"learningRate": "1e-3", "lora": lora(8, *"qkvo")}
    largest = {"learningRate": "2e-3", "lora": lora(32, *"qkvo")}
    layerwise = {"learningRate": "1e-4", "lora": lora(8, *"qkv")}
    block = {"objective": "block", "learningRate": "1e-3", "lora": lora(8, *"qkvo")}
    gentle = {"plateau": {"factor": "0.3", "patience": 1, "every": 16}}
    one, three = size.crias
    return [
        Variant(name="transfer, stitch r 8 lr 1e-4", group="main", tokens=many, stitch=published),
        Variant(name="transfer, LoRA layerwise lr 1e-4", group="main", tokens=many, cria_lora=layerwise),
        Variant(name="transfer, stitch r 8 lr 1e-3", group="main", tokens=many, stitch=better),
        Variant(name="transfer", group="main", tokens=few),
        Variant(name="transfer lr 3e-3", group="main", tokens=many, transfer={"learningRate": "3e-3"}),
        Variant(name="transfer", group="faults", tokens=many, fault="oneSchedule"),
        Variant(name="transfer", group="faults", tokens=many, fault="bf16Maps"),
        Variant(name="C = all", group="crias", tokens=few, cria_lora=block),
        Variant(name=f"C = {three}", group="crias", tokens=few, layers_per_cria=three, cria_lora=block),
        Variant(
            name="transfer", group="faults", tokens=few, layers_per_cria=three, fault="normedResidual"
        ),
        Variant(name="transfer, stitch r 32 lr 2e-3", group="main", tokens=many, stitch=largest),
        Variant(
            name="transfer with plateau 0.3 after 2 checks", group="main", tokens=many, transfer=gentle
        ),
        Variant(
            name="transfer, LoRA block lr 1e-3, stitch r 8 lr 1e-3", group="main", tokens=many,
            cria_lora=block, stitch=better,
        ),
        Variant(name=f"C = {one}", group="crias", tokens=few, layers_per_cria=one, cria_lora=block),
        Variant(name="transfer, stitch r 8 lr 1e-3", group="main", tokens=few, stitch=better),
    ]  # fmt: skip


def document(variant: Variant, size: Size, place: Place) -> dict[str, Any]:
    """Return the Trenchcoat of a variant, as the YAML has it."""
    batches = {"batchSize": size.batch_size, "microBatchSize": size.batch_size}
    cria_lora, stitch = variant.cria_lora, variant.stitch
    return {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": "quality"},
        "spec": {
            "model": {"source": f"file://{place.teacher}"},
            "data": {
                "source": f"file://{place.corpus}",
                "tokens": variant.tokens,
                "sequenceLength": size.sequence_length,
                "heldOutTokens": size.held_out_tokens,
                "heldOutPercent": size.held_out_percent,
            },
            "store": {
                "endpoint": "http://localhost:9000",
                "bucket": "quality",
                # A fault is no part of any artifact's key: it needs a place of its own.
                "prefix": variant.fault or "quality",
                "credentialsSecretRef": {"name": "none"},
            },
            "dtype": size.dtype,
            "layersPerCria": variant.layers_per_cria or size.layers,
            "attention": {"window": size.window, "featureDim": size.feature_dim},
            "collect": {"batchSize": 4 * size.batch_size},
            "transfer": {"epochs": 1, **batches, **variant.transfer},
            "criaLora": {"epochs": 1, **batches, **cria_lora} if cria_lora else {"epochs": 0},
            "stitch": {"epochs": 1, **batches, **stitch} if stitch else {"epochs": 0},
            "evaluate": {"batchSize": 4 * size.batch_size, "adaptedTeacher": "never"},
            "export": {"enabled": False},
        },
    }


def run_variant(variant: Variant, size: Size, place: Place) -> dict[str, Any]:
    """Run the stages of one variant in this process, as `trenchcoat run` would, and return its numbers.

    Artifacts that another variant has made, or is making, are not made twice.
    """
    import yaml
    from faults import switched_on
    from trenchcoat_api.artifacts import Artifacts, Manifest
    from trenchcoat_api.crias import cria_ranges
    from trenchcoat_api.resource import Trenchcoat
    from trenchcoat_api.stages import Stage
    from trenchcoat_trainer.program import run_stage
    from trenchcoat_trainer.runtime.stop import StopRequest

    place.store.mkdir(parents=True, exist_ok=True)
    (place.store / "quality").mkdir(exist_ok=True)
    spec_file = place.store / f"spec-{os.getpid()}.yaml"
    spec_file.write_text(yaml.safe_dump(document(variant, size, place)))
    spec = Trenchcoat.from_yaml(spec_file).spec
    artifacts, crias = Artifacts(spec), cria_ranges(size.layers, spec.layers_per_cria)
    seconds: dict[str, float] = {}
    losses: list[dict[str, str]] = []
    for stage in map(Stage, STAGES):
        began = time.monotonic()
        for cria in crias if stage is Stage.CRIA else [None]:
            artifact = {
                Stage.TOKENIZE: lambda: artifacts.tokenize,
                Stage.SHARD: lambda: artifacts.shard,
                Stage.COLLECT: lambda: artifacts.collect,
                Stage.CRIA: lambda cria=cria: artifacts.cria(cria),
                Stage.STITCH: lambda: artifacts.stitch(crias),
                Stage.EVALUATE: lambda: artifacts.evaluate(crias),
            }[stage]()
            folder = place.store / "quality" / artifact.prefix
            with locked(place.store / f"{artifact.key}.lock"), switched_on(variant.fault):
                run_stage(
                    stage, spec_file, cria=None if cria is None else cria.index, folder=place.store,
                    stop=StopRequest(),
                )  # fmt: skip
            if stage is Stage.CRIA:
                manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
                losses.append(manifest.facts.losses)
        seconds[stage.value] = round(time.monotonic() - began, 1)
        sys.stdout.flush()
    report = json.loads((folder / "report.json").read_text())
    layers = [len(cria.layers) for cria in crias]
    mean = {
        name: sum(float(found[name]) * n for found, n in zip(losses, layers, strict=True)) / sum(layers)
        for name in losses[0]
    }
    return {"report": report, "seconds": seconds, "losses": mean}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes: one makes an artifact, the others wait and find it complete."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
