"""Trenchcoats as the API server gives them, to look at."""

from typing import Any

from trenchcoat_api.resource import Trenchcoat

NOW = "2026-01-01T14:00:00+00:00"


def condition(kind: str, status: str, reason: str = "InProgress", message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T12:00:00Z",
    }


def cria(index: int, state: str, **more: Any) -> dict[str, Any]:
    return {"index": index, "layers": f"{index * 9}-{index * 9 + 8}", "state": state, **more}


def done(index: int, loss: str, seconds: str, **more: Any) -> dict[str, Any]:
    curve = [str(float(loss) * (1 + 8 / (step + 1))) for step in range(32)]
    values = {"progress": "100%", "loss": loss, "seconds": seconds, "bytes": 52_400_000, "source": "Computed"}
    return cria(
        index,
        "Succeeded",
        **{
            **values,
            "curve": curve,
            "error": f"{float(loss) / 4:.4f}",
            "node": f"gpu-{index % 4}",
            "attempt": 1,
            **more,
        },
    )


GPU = "0 of 6 nodes have a free nvidia.com/gpu"


def trenchcoat(name: str, status: dict[str, Any], **spec: Any) -> Trenchcoat:
    return Trenchcoat.from_object(
        {
            "apiVersion": "trenchcoat.dev/v1alpha1",
            "kind": "Trenchcoat",
            "metadata": {"name": name, "namespace": "research", "uid": name, "generation": 1},
            "spec": {
                "model": {"source": "hf://meta-llama/Llama-3.1-405B"},
                "data": {"source": "s3://corpora/redpajama/*.jsonl.zst", "tokens": 20_000_000},
                "store": {
                    "endpoint": "https://minio.example:9000",
                    "bucket": "trenchcoat",
                    "credentialsSecretRef": {"name": "minio"},
                },
                "preset": "shipped",
                "layersPerCria": 9,
                **spec,
            },
            "status": status,
        }
    )


def stages(*, cria_row: dict[str, Any], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": "tokenize",
            "state": "Succeeded",
            "seconds": "312.0",
            "bytes": 80_000_000,
            "source": "Reused",
        },
        {
            "name": "collect",
            "state": "Succeeded",
            "seconds": "5400.0",
            "bytes": 8_520_000_000_000,
            "source": "Computed",
            "node": "gpu-0",
        },
        {
            "name": "shard",
            "state": "Succeeded",
            "seconds": "1800.0",
            "bytes": 810_000_000_000,
            "source": "Computed",
        },
        {"name": "cria", **cria_row},
        *later,
    ]


BLOCKED = [
    {"name": name, "state": "Blocked", "message": f"waits for {what}"}
    for name, what in (("stitch", "cria"), ("evaluate", "stitch"), ("export", "stitch"))
]
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


def running() -> Trenchcoat:
    falling = [str(round(900 / (step + 1), 3)) for step in range(20)]
    crias = [done(index, f"0.0{index + 31}", str(3000 + 17 * index)) for index in range(6)]
    crias[2] |= {"attempt": 2}
    crias += [
        cria(
            index,
            "Running",
            phase=phase,
            step=step,
            steps=5000,
            progress=f"{share}%",
            loss=loss,
            eta=eta,
            startedAt=f"2026-01-01T13:{minute}:00Z",
            node=f"gpu-{index % 4}",
            attempt=attempt,
            curve=falling,
            lastFailure="Preempted: the cluster ended pod x" if attempt > 1 else "",
        )
        for index, phase, step, share, loss, eta, minute, attempt in (
            (6, "lora", 1200, 62, "0.0412", "19m30s", "28", 1),
            (7, "transfer", 4100, 41, "45.2", "31m02s", "38", 2),
            (8, "transfer", 250, 2, "861.7", "54m40s", "58", 1),
        )
    ]
    crias.append(cria(9, "Starting", message="its pods start", attempt=1))
    crias += [cria(index, "Waiting", waitingReason="Gpu", message=GPU) for index in range(10, 14)]
    cria_row = {
        "state": "Running",
        "progress": "51%",
        "message": f"6 of 14 done, 3 running, 1 starting, 4 waiting; Cria 10: {GPU}",
        "startedAt": "2026-01-01T12:30:00Z",
        "bytes": 6 * 52_400_000,
    }
    return trenchcoat(
        "llama-405b",
        {
            "stage": "cria",
            "criasDone": "6/14",
            "loss": "0.0412",
            "progress": "50%",
            "eta": "1h52m",
            "storedBytes": 9_330_000_000_000,
            "gpuSeconds": "412345",
            "model": MODEL,
            "conditions": [
                condition("Accepted", "True"),
                condition("Succeeded", "False", "InProgress", "cria"),
                condition("Stalled", "False"),
            ],
            "stages": stages(cria_row=cria_row, later=BLOCKED),
            "crias": crias,
        },
    )


def stalled() -> Trenchcoat:
    message = (
        "the loss became NaN at step 120 of transfer; mend it, then `kubectl trenchcoat retry llama-8b 1`"
    )
    crias = [
        done(0, "0.031", "3000"),
        cria(1, "Failed", message=message, attempt=1, progress="12%", node="gpu-1"),
    ]
    crias += [
        cria(2, "Suspended", message="spec.suspend is true"),
        cria(3, "Blocked", message="waits for shard"),
    ]
    cria_row = {"state": "Failed", "progress": "28%", "message": f"1 of 4 done, 1 failed; Cria 1: {message}"}
    return trenchcoat(
        "llama-8b",
        {
            "stage": "Failed",
            "criasDone": "1/4",
            "progress": "39%",
            "conditions": [
                condition("Succeeded", "False", "Diverged", f"cria-01: {message}"),
                condition("Stalled", "True", "Diverged", f"cria-01: {message}"),
            ],
            "stages": stages(cria_row=cria_row, later=BLOCKED),
            "crias": crias,
        },
    )


def complete() -> Trenchcoat:
    """Of 40 Crias, most of them alike."""
    crias = [
        done(index, "0.031", "300.5", source="Reused" if index < 30 else "Computed") for index in range(40)
    ]
    later = [
        {
            "name": name,
            "state": "Succeeded",
            "seconds": "65.0",
            "source": "Computed",
            "loss": loss,
            "bytes": 1000,
        }
        for name, loss in (("stitch", "2.31"), ("evaluate", ""), ("export", ""))
    ]
    return trenchcoat(
        "tiny",
        {
            "stage": "Complete",
            "criasDone": "40/40",
            "loss": "2.31",
            "progress": "100%",
            "exportUri": "s3://trenchcoat/trenchcoat/artifacts/export/0123456789abcdef/",
            "conditions": [condition("Succeeded", "True", "Complete", "all stages are complete")],
            "stages": stages(cria_row={"state": "Succeeded", "seconds": "12020"}, later=later),
            "crias": crias,
            "perplexities": [
                {"name": name, "perplexity": value, "longer": {"2048": longer}}
                for name, value, longer in (
                    ("teacher", "37.66", "35.10"),
                    ("windowedTeacher", "39.02", "38.80"),
                    ("untrained", "68.99", "70.01"),
                    ("stitched", "38.45", "41.20"),
                )
            ],
            "evaluation": {
                "sequenceLength": 1024,
                "recall": [
                    {
                        "probe": probe,
                        "distance": distance,
                        "samples": 32,
                        "shares": {"teacher": teacher, "windowedTeacher": "0", "stitched": stitched},
                        "errors": {"teacher": "0.061", "windowedTeacher": "0.038", "stitched": "0.057"},
                    }
                    for probe, distance, teacher, stitched in (
                        ("copy", 40, "0.91", "0.9"),
                        ("copy", 256, "0.57", "0.1"),
                        ("passkey", 400, "1", "0"),
                    )
                ],
                "comparisons": [
                    {
                        "teacher": "teacher",
                        "ratio": "1.02098",
                        "ratioError": "0.0014",
                        "continuations": 480,
                        "wins": "0.05",
                        "ties": "0.2375",
                        "error": "0.021",
                    }
                ],
                "positions": [
                    {
                        "first": first,
                        "last": first + 1023,
                        "perplexities": {"teacher": teacher, "stitched": stitched},
                    }
                    for first, teacher, stitched in ((0, "37.60", "38.31"), (1024, "32.80", "44.20"))
                ],
                "parts": {"withoutLinear": "52.1", "withoutWindow": "803.4"},
                "decode": {
                    "crossover": 392,
                    "equalWindow": 390,
                    "student": {"1024": 202_309_632, "2048": 202_309_632},
                    "teacher": {"1024": 528_482_304, "2048": 1_056_964_608},
                },
                "leftOut": [
                    "perplexity at 4096 tokens: the held-out text has 2048 (spec.data.heldOutTokens)"
                ],
            },
        },
    )


def unseen() -> Trenchcoat:
    return trenchcoat("new", {})


def suspended() -> Trenchcoat:
    message = "spec.suspend is true"
    return trenchcoat(
        "paused",
        {
            "stage": "Suspended",
            "progress": "1%",
            "conditions": [
                condition("Succeeded", "False", "Suspended", message),
                condition("Stalled", "False"),
            ],
            "stages": [
                {"name": "tokenize", "state": "Suspended", "message": message, "progress": "55%"},
                {"name": "collect", "state": "Blocked", "message": "waits for tokenize"},
            ],
        },
        suspend=True,
    )


ALL = {each.__name__: each for each in (running, stalled, complete, unseen, suspended)}
