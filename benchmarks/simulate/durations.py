"""What is simulated: the run, how long its stages take by the plan, and the least that any schedule needs."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stage_size import StageSize, stage_size
from trenchcoat_api.stages import Stage

REPO = Path(__file__).resolve().parents[2]
POOL = "pool"
GANG_NODES, GPUS_PER_NODE = 3, 8
PLAYED = (Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD, Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT)


def pool_of(stage: Stage, evaluate_gpus: int) -> str:
    """Where a stage runs: the Crias' nodes are too small for an evaluation on several GPUs."""
    return "crias" if stage is Stage.CRIA or (stage is Stage.EVALUATE and evaluate_gpus == 1) else "gang"


def body(name: str, endpoint: str, evaluate_gpus: int = 1) -> dict[str, Any]:
    """The Trenchcoat of examples/llama-3.1-405b.yaml over pools of nodes, in Kueue's queue."""
    made: dict[str, Any] = yaml.safe_load((REPO / "examples" / "llama-3.1-405b.yaml").read_text())
    made["metadata"] = {"name": name, "namespace": name}
    spec = made["spec"]
    del spec["model"]["tokenSecretRef"]
    spec["store"] |= {"endpoint": endpoint, "prefix": name}
    spec["scheduling"] = {"queueName": "ours"}
    spec["evaluate"] = {"nodes": 1, "gpusPerNode": evaluate_gpus}
    spec["pods"] = {
        stage.value: {"nodeSelector": {POOL: f"{name}-{pool_of(stage, evaluate_gpus)}"}} for stage in PLAYED
    }
    return made


@dataclass(frozen=True)
class Durations:
    """Seconds of one Job of every stage, by the plan."""

    seconds: dict[Stage, float]
    crias: int
    sizes: dict[Stage, StageSize]

    @classmethod
    def planned(cls, evaluate_gpus: int = 8) -> Durations:
        """For H100s of 80 GB."""
        fields = json.loads((REPO / "examples" / "models" / "llama-3.1-405b.json").read_text())
        spec = Trenchcoat.from_object(body("planned", "http://store.example", evaluate_gpus)).spec
        plan = make_plan(Outline.of(spec, PlannedModel.of_config(fields, "405B")), Given())
        sizes = {stage: stage_size(spec, stage) for stage in PLAYED}
        return cls({row.name: row.job_seconds for row in plan.stages}, len(plan.crias), sizes)

    def bound(self, gpus: int) -> float:
        """Seconds of the best schedule: along what waits for what, Crias packed onto so many GPUs."""
        took = self.seconds
        free = [0.0] * min(gpus, self.crias)
        for _ in range(self.crias):
            heapq.heappush(free, heapq.heappop(free) + took[Stage.CRIA])
        return (
            took[Stage.TOKENIZE]
            + max(took[Stage.COLLECT], took[Stage.SHARD])
            + max(free)
            + took[Stage.STITCH]
            + max(took[Stage.EVALUATE], took[Stage.EXPORT])
        )

    def gpus(self, stage: Stage) -> int:
        """GPUs of one of a stage's pods."""
        return self.sizes[stage].gpus_per_node

    def pods(self, stage: Stage) -> int:
        """Pods that work together."""
        return self.sizes[stage].nodes

    def pool(self, stage: Stage) -> str:
        """The nodes that a stage runs on."""
        return pool_of(stage, self.sizes[Stage.EVALUATE].gpus)
