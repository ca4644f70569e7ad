"""What a decision rests on: put together once, before anything is decided, and only read afterwards."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.model.observed import Child, Observed
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Graph


@dataclass(frozen=True, slots=True)
class Look:
    """One Trenchcoat at one moment: what it asks for, and what was seen of it."""

    trenchcoat: Trenchcoat
    observed: Observed
    settings: Settings
    now: datetime
    graph: Graph
    """What its spec asks for."""
    needed: frozenset[str]
    """Content keys of the artifacts that are still to be made."""
    children: tuple[Child, ...]
    """Its Jobs and PyTorchJobs in order of name, without those left by an earlier Trenchcoat of its name."""

    @classmethod
    def at(cls, trenchcoat: Trenchcoat, observed: Observed, settings: Settings, now: datetime) -> Self:
        """Work out what the spec asks for, and what of it is still to be made."""
        built = graph.build(trenchcoat.spec, observed.store.told)
        needed = graph.needed(built, observed.store.manifests, observed.store.deletions)
        children = sorted((child for child in observed.children if child.owned), key=lambda child: child.name)
        return cls(trenchcoat, observed, settings, now, built, frozenset(needed), tuple(children))

    def without_adapted_teacher(self) -> Self:
        """The same for a run that goes on without the adapted teacher, which could not be trained."""
        store = self.observed.store
        built = graph.build(self.trenchcoat.spec, store.told, without_adapted_teacher=True)
        needed = graph.needed(built, store.manifests, store.deletions)
        return replace(self, graph=built, needed=frozenset(needed))

    @property
    def former(self) -> TrenchcoatStatus:
        """The status as the last look left it."""
        return self.trenchcoat.status

    @property
    def pending_jobs(self) -> int:
        """Jobs that may wait as Pending pods, so that an autoscaler adds nodes."""
        own = self.trenchcoat.spec.scheduling.pending_jobs
        return self.settings.pending_jobs if own is None else own

    @property
    def store_is_known(self) -> bool:
        """Whether the store could be read: else nothing of it is known, nor what is wanted."""
        return self.observed.store.problem is None

    def saved(self, key: str) -> float | None:
        """Share of its stage that an artifact's checkpoint holds; none where the last try saved none."""
        report = self.observed.store.progress.get(key)
        if report is None or report.saved_fraction is None:
            return None
        return round(report.saved_fraction, 6)  # as it is recorded
