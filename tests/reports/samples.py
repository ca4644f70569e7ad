"""Runs to look at: one that was run, and one of 14 Crias of 9 layers in which everything happens."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_report.run import LayerFigures, Manner, Run, Sample

BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
MODEL = {
    "layers": 126,
    "hiddenSize": 16384,
    "heads": 128,
    "kvHeads": 8,
    "headDim": 128,
    "intermediateSize": 53248,
    "vocabSize": 128256,
    "parameters": 405_853_388_800,
}


def small() -> Run:
    """examples/tiny.yaml as it ran on one machine: 6 Crias of 2 layers."""
    return Run.model_validate_json((Path(__file__).parent / "data" / "tiny.json").read_text())


def large(*, complete: bool = True, name: str = "llama-405b", **spec: Any) -> Run:
    """14 Crias of 9 layers: some reused, retried, waiting or failed; made up, for the page alone."""
    crias = [_cria(index, complete) for index in range(14)]
    status: dict[str, Any] = {
        "stage": "Complete" if complete else "cria",
        "criasDone": "14/14" if complete else "9/14",
        "progress": "100%" if complete else "64%",
        "storedBytes": 9_330_000_000_000,
        "gpuSeconds": "812345",
        "model": MODEL,
        "data": {
            "documents": 9,
            "sequences": 19531,
            "tokens": 19_999_744,
            "heldOutDocuments": 2,
            "heldOutSequences": 32,
        },
        "conditions": [_condition("Succeeded", complete), _condition("Stalled", False)],
        "stages": [
            _row("tokenize", 0, 0.1, source="Reused", completedAt=_at(-1), bytes=80_000_000),
            _row("collect", 0.2, 1.7, bytes=8_520_000_000_000, gpuSeconds="129600"),
            _row("shard", 0.2, 0.7, bytes=810_000_000_000),
            {"name": "cria", "state": "Succeeded" if complete else "Running"},
            *(_later(complete)),
        ],
        "crias": crias,
    }
    if complete:
        status |= {
            "exportUri": "s3://trenchcoat/trenchcoat/artifacts/export/0123456789abcdef/",
            "perplexities": [
                {"name": form, "perplexity": value, "longer": {"2048": double, "4096": four}}
                for form, value, double, four in (
                    ("teacher", "2.10", "2.03", "1.99"),
                    ("windowedTeacher", "2.55", "2.58", "2.60"),
                    ("untrained", "301.2", "355.0", "401.0"),
                    ("transfer", "2.61", "2.80", "3.02"),
                    ("criaLora", "2.40", "2.51", "2.66"),
                    ("stitched", "2.23", "2.31", "2.44"),
                )
            ],
            "evaluation": {
                "sequenceLength": 1024,
                "recall": [
                    {"probe": probe, "distance": distance, "samples": 32,
                     "shares": {"teacher": teacher, "windowedTeacher": "0.01", "stitched": stitched}}
                    for probe, distance, teacher, stitched in (
                        ("copy", 40, "0.99", "0.99"), ("copy", 256, "0.99", "0.52"),
                        ("copy", 1024, "0.98", "0.07"),
                        ("passkey", 400, "1", "0.91"), ("passkey", 1600, "1", "0.12"),
                    )
                ],
                "decode": {
                    "crossover": 392, "equalWindow": 390,
                    "student": {"1024": 202_309_632, "2048": 202_309_632},
                    "teacher": {"1024": 528_482_304, "2048": 1_056_964_608},
                },
            },
        }  # fmt: skip
    body = {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": name, "namespace": "research", "creationTimestamp": _at(0)},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-405B"},
            "data": {"source": "s3://corpora/redpajama/*.jsonl.zst"},
            "store": {
                "endpoint": "https://minio.example:9000",
                "bucket": "trenchcoat",
                "credentialsSecretRef": {"name": "minio"},
            },
            "preset": "shipped",
            "layersPerCria": 9,
            "attention": {"keepSoftmaxLayers": [0, 60, 125]},
            "gates": {"maxCriaError": "0.5", "maxPerplexityRatio": "1.1", "minRecall": "0.5"},
            "pods": {"cria": {"env": [{"name": "NOT_TO_BE_COPIED", "value": "hush"}]}},
            **spec,
        },
        "status": status,
    }
    layers = [layer for layer in range(126 if complete else 81) if layer not in (0, 60, 125)]
    return Run(
        trenchcoat=Trenchcoat.from_object(body),
        layers=[
            LayerFigures(
                layer=layer,
                error=f"{0.05 + 0.3 * layer / 126 + 0.03 * math.sin(layer):.4f}",
                losses=[f"{90 + layer}", f"{9 + layer / 10:.1f}"],
                outside=f"{0.5 + 0.3 * math.cos(layer / 9):.4f}" if complete else "",
            )
            for layer in layers
        ],
        samples=SAMPLES if complete else [],
        curves={"stitch": [f"{2.4 - 0.1 * math.log1p(step):.4f}" for step in range(32)]} if complete else {},
        began=BEGAN,
        told_at=BEGAN + timedelta(hours=9 if complete else 5),
        manner=Manner.CLUSTER,
        store="s3://trenchcoat/trenchcoat",
        versions={"trenchcoat": "0.1.0"},
    )


SAMPLES = [
    Sample(
        prompt="Alpacas and llamas are <camelids>; a young one is called",
        text=" a cria. It is weaned\nat six months.",
        continuations={"teacher": " a cria, and it weighs", "stitched": " a cria, and its coat"},
    )
]


def _at(hours: float) -> str:
    return (BEGAN + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(kind: str, holds: bool) -> dict[str, Any]:
    told = {"type": kind, "status": str(holds), "reason": "Told", "message": ""}
    return {**told, "lastTransitionTime": _at(0)}


def _row(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    return {"name": name, **_done(start, end), **more}


def _done(start: float, end: float, **more: Any) -> dict[str, Any]:
    return {
        "state": "Succeeded",
        "source": "Computed",
        "attempt": 1,
        "key": "0123456789abcdef",
        "digest": "sha256:" + "0123456789abcdef" * 4,
        "progress": "100%",
        "startedAt": _at(start),
        "completedAt": _at(end),
        "seconds": str((end - start) * 3600),
        **more,
    }


def _later(complete: bool) -> list[dict[str, Any]]:
    if not complete:
        return [
            {"name": name, "state": "Blocked", "message": f"waits for {what}"}
            for name, what in (("stitch", "cria"), ("evaluate", "stitch"), ("export", "stitch"))
        ]
    return [
        _row("stitch", 6.6, 8.1, bytes=90_000_000, gpuSeconds="129600"),
        _row("evaluate", 8.1, 8.9, bytes=20_000),
        _row("export", 8.1, 8.4, bytes=810_000_000_000),
    ]


def _cria(index: int, complete: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"index": index, "layers": f"{index * 9}-{index * 9 + 8}"}
    if not complete and index > 11:
        why = "0 of 6 nodes have a free nvidia.com/gpu"
        return row | {"state": "Waiting", "waitingReason": "Gpu", "waitingSince": _at(1.7), "message": why}
    if not complete and index == 11:
        why = "the loss of layer 101 became nan at step 120: lower spec.transfer.learningRate"
        return row | {"state": "Failed", "startedAt": _at(3.2), "attempt": 1, "message": why}
    start = 1.7 + 1.4 * (index // 4)
    curve = [f"{900 * math.exp(-step / 6) + 30 + index:.3f}" for step in range(32)]
    if not complete and index > 8:
        return row | {
            "state": "Running", "startedAt": _at(start), "attempt": 1, "progress": "31%", "curve": curve[:12],
        }  # fmt: skip
    row |= {
        "losses": {
            "transferInitial": "931.0",
            "transfer": curve[-1],
            "loraInitial": "0.052",
            "lora": "0.041",
        },
        "curve": curve,
        "error": f"{0.1 + 0.02 * index:.3f}",
        **_done(start, start + 1.2 + 0.01 * index, gpuSeconds="4320"),
    }
    if index < 2:
        row |= {"source": "Reused", "completedAt": _at(-20), "startedAt": _at(-21)}
    if index == 5:
        tries = [{"number": 1, "outcome": "Evicted"}, {"number": 2, "outcome": "Succeeded"}]
        row |= {
            "attempt": 2,
            "attempts": tries,
            "seconds": "3000",
            "lastFailure": "Evicted: the node is drained",
        }
    return row
