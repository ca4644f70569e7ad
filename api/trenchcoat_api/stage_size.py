"""On how many nodes and GPUs a stage runs: the one place where a spec's settings become that."""

from typing import NamedTuple

from trenchcoat_api.phases import rolls
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import GANGS, Stage


class StageSize(NamedTuple):
    """What one Job of a stage takes."""

    nodes: int
    """Pods that work together, each of them on as many GPUs."""
    gpus_per_node: int
    """0 computes on CPUs."""

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def processes_per_node(self) -> int:
        """Processes of each pod: one for each GPU, or one where it has none."""
        return max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Processes that share the stage, in all."""
        return self.nodes * self.processes_per_node


_ONE_GPU, _NO_GPU = StageSize(1, 1), StageSize(1, 0)


def stage_size(spec: TrenchcoatSpec, stage: Stage) -> StageSize:
    """What one Job of a stage takes; of collection that rolls, one that makes a single boundary."""
    match stage:
        case Stage.COLLECT if rolls(spec):
            return _ONE_GPU
        case Stage.COLLECT:
            return StageSize(spec.collect.nodes, spec.collect.gpus_per_node)
        case Stage.STITCH | Stage.ADAPT:
            return StageSize(spec.stitch.nodes, spec.stitch.gpus_per_node)
        case Stage.EVALUATE:
            return StageSize(spec.evaluate.nodes, spec.evaluate.gpus_per_node)
        case Stage.SELECT | Stage.CRIA:
            return _ONE_GPU
        case Stage.TOKENIZE | Stage.SHARD | Stage.EXPORT:
            return _NO_GPU


def is_gang(spec: TrenchcoatSpec, stage: Stage) -> bool:
    """Whether a stage is run as a gang; an evaluation of one pod is a Job, on however many GPUs."""
    return stage in GANGS or stage_size(spec, stage).nodes > 1
