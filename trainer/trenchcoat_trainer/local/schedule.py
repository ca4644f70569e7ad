"""What runs next on one machine: pure decisions, apart from the processes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.boundaries import by_stage, inputs_of, read_by
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import Stage

_ROOM = 0.8
"""Of a GPU's memory: what a plan says of a stage is what it needs at least."""
_CRIAS_A_GPU = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has to run on."""

    gpus: int
    cores: int
    gpu_memory: int = 0
    """Bytes of the GPU that has least; 0 where there is none."""

    def workers(self, stage: Stage, spec: TrenchcoatSpec) -> int:
        """Processes of one stage: as many as the spec's pods have GPUs, but no more than fit here."""
        return max(1, min(stage_size(spec, stage).ranks, self.gpus or self.cores))

    def parallel_crias(self, need: int) -> int:
        """Crias to train at one time: one a CPU core, or as many as fit beside one another on every GPU.

        A small Cria's steps end before the host has launched the next ones: others fill the time. More than
        a few do not help, and each takes a core.

        Args:
            need: Bytes of GPU memory of one; 0 where it is not known.
        """
        if not self.gpus:
            return self.cores
        room = int(_ROOM * self.gpu_memory) // need if need else 1
        return self.gpus * max(1, min(room, _CRIAS_A_GPU, self.cores // self.gpus))


def least_used(gpus: int, in_use: Iterable[int]) -> int:
    """The GPU that fewest processes use, the first of several; `gpus` is at least 1."""
    used = list(in_use)
    return min(range(gpus), key=used.count)


def visible_devices(gpu: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a process that gets one GPU alone.

    Args:
        gpu: Counted among those that this process sees.
        visible: The variable as this process has it; None when it is not set.
    """
    return visible.split(",")[gpu].strip() if visible else str(gpu)


def ready(artifacts: Sequence[Artifact], complete: set[str], running: set[str]) -> list[Artifact]:
    """The artifacts, in order, that are not made, not being made, and whose inputs are all complete.

    Args:
        artifacts: Every artifact that the run wants and is known so far.
        complete: Keys of those in the store.
        running: Keys of those being made.
    """
    made = by_stage(artifacts)

    def inputs_complete(artifact: Artifact) -> bool:
        inputs = inputs_of(artifact, made)
        if artifact.boundary is not None:  # a Job of its own reads the one before
            inputs = [*inputs, *read_by(artifact, made)]
        return all(item.key in complete for item in inputs)

    return [
        artifact
        for artifact in artifacts
        if artifact.key not in complete | running and inputs_complete(artifact)
    ]


def admit(
    candidates: Iterable[Artifact], running: Mapping[str, Stage], parallel_crias: int
) -> list[Artifact]:
    """Of the artifacts that are ready, those to start now.

    Collection and sharding run side by side, up to `parallel_crias` Crias too; every other stage, selection
    among them, has the machine to itself.
    """
    together = {Stage.COLLECT, Stage.SHARD}
    stages = list(running.values())
    started = []
    for artifact in candidates:
        if artifact.stage is Stage.CRIA:
            free = all(stage is Stage.CRIA for stage in stages) and len(stages) < parallel_crias
        elif artifact.stage in together:
            free = set(stages) <= together
        else:
            free = not stages
        if free:
            started.append(artifact)
            stages.append(artifact.stage)
    return started
