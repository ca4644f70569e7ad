"""All that was worked out of one look: what is told, and when the next look is due, follow from it alone."""

from dataclasses import dataclass

from trenchcoat_operator.model.observed import Child
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.starting.release import Release


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a Trenchcoat stands, and who starts and goes now."""

    look: Look
    assessments: tuple[Assessment, ...]
    """Where each work stands, in the order of the graph."""
    released: Release
    """Which works start, and why others do not."""
    going: frozenset[str]
    """Names of the children and ConfigMaps that are taken away now."""

    def starts(self, assessment: Assessment) -> bool:
        """Whether a Job is made for a work now."""
        return any(work.key == assessment.work.key for work in self.released.start)

    def at_work(self) -> list[Child]:
        """The children that hold, or may come to hold, resources of the cluster."""
        return [child for child in self.look.children if child.active]
