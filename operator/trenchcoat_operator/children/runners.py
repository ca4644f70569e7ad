"""What runs a work: one interface, and the choice among those that keep to it."""

from typing import Protocol

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Distributed, TrenchcoatSpec

from trenchcoat_operator.children.attempts import Attempt
from trenchcoat_operator.children.batch_jobs import IndexedJob, SingleJob
from trenchcoat_operator.children.pytorch_jobs import PyTorchJob
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Object
from trenchcoat_operator.works.graph import Work


class Runner(Protocol):
    """Makes a try at an artifact into objects of the API server."""

    @property
    def kind(self) -> ChildKind:
        """What the object is; the container that runs the stage is named by it."""
        ...

    def manifest(self, attempt: Attempt) -> Object:
        """The object that runs a try."""
        ...

    def services(self, trenchcoat: Trenchcoat) -> tuple[Object, ...]:
        """Services that must be there beside it, the same for all tries of a Trenchcoat."""
        ...


_SINGLE, _INDEXED, _PYTORCH = SingleJob(), IndexedJob(), PyTorchJob()


def runner(spec: TrenchcoatSpec, work: Work) -> Runner:
    """What runs a work, by spec.scheduling.distributed; one pod alone needs no more than a Job."""
    if not work.distributed:
        return _SINGLE
    if spec.scheduling.distributed is Distributed.PYTORCH_JOB:
        return _PYTORCH
    return _INDEXED if work.pods > 1 else _SINGLE
