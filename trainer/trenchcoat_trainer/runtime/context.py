"""What a stage is given: its spec, its inputs, and where its artifact goes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.runtime.progress import ProgressReporter
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.writer import ArtifactWriter


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a stage's processes this is."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Processes of its pod, whose ranks follow one another; of every pod as many."""

    @classmethod
    def from_environment(cls) -> Self:
        """As RANK, WORLD_SIZE and LOCAL_WORLD_SIZE say; without them, the only one."""
        return cls(
            int(os.environ.get("RANK", "0")),
            int(os.environ.get("WORLD_SIZE", "1")),
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )


@dataclass(kw_only=True)
class StageContext(Inputs):
    """Everything a stage needs; the same in a pod and in a local process."""

    artifact: Artifact
    """What this stage makes."""
    cria: CriaRange | None
    """The Cria at hand; the cria stage, and collection of what leaves one Cria."""
    rank: int
    world_size: int
    progress: ProgressReporter
    stop: StopRequest
    writer: ArtifactWriter
    checkpoint: Checkpoint
    local_world_size: int = 1
    """As `Place` has it."""
    folder: Path | None = None
    """The folder that stands for the store, where one does."""
