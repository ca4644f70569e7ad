"""How fast a stage went, phase by phase: kept beside its artifact, and what `trenchcoat rates` reads.

An object of its own, for no number of an artifact depends on it, and an earlier version does not know of it.
"""

from pydantic import Field

from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.base import Camel

PACES = "paces.json"
CPU = "cpu"
"""The device of a stage that used no GPU."""


class PhasePace(Camel):
    """One phase, such as transfer: what it takes once it runs, without what goes before its first step."""

    phase: str = Field(description="Its name.")
    share: float = Field(description="Share of the whole stage that it is.", ge=0, le=1)
    timed: float = Field(description="Share whose time is known, again where it was done again.", gt=0)
    seconds: float = Field(description="What that took.", ge=0)

    @property
    def whole(self) -> float:
        """Seconds of the phase at this pace from its beginning to its end."""
        return self.seconds * self.share / self.timed


class Paces(Camel):
    """All phases of a stage, and what ran them."""

    device: str = Field(description="Name of the GPU, or cpu.")
    ranks: int = Field(description="Processes that computed together.", ge=1)
    phases: list[PhasePace] = Field(description="In the order in which they ran.")


def paces_path(artifact: Artifact) -> str:
    """Object key of the paces of an artifact within the bucket."""
    return artifact.prefix + PACES
