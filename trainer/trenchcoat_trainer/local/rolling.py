"""Rolling collection on one machine: boundaries that Crias leave one another, deleted once they are read."""

from collections.abc import Container, Sequence

from trenchcoat_api.artifacts import MANIFEST, Artifact, Artifacts
from trenchcoat_api.boundaries import by_stage, maker, still_needed, with_boundaries
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.store import Store


class Boundaries:
    """What the store has of them; none where a stage collects them all."""

    def __init__(self, spec: TrenchcoatSpec, store: Store, crias: Sequence[CriaRange]) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self._all = with_boundaries(spec, Artifacts(spec), crias)
        self._made = by_stage(self._all)
        self._deleted: set[str] = set()

    @property
    def artifacts(self) -> list[Artifact]:
        """All artifacts of the run, each boundary between what makes it and what reads it."""
        return self._all

    def look(self, complete: Container[str]) -> tuple[set[str], set[str]]:
        """Delete what nobody reads any more.

        Args:
            complete: content keys of the other artifacts that are complete.

        Returns:
            Content keys of the boundaries that are complete, and of those that are to be read.
        """
        boundaries = [item for item in self._all if item.boundary is not None]
        there = {item.key for item in boundaries if self._store.exists(item.manifest_path)}
        known = {item.key for item in self._all if item.key in complete} | there
        needed = {item.key for item in still_needed(self._made, known)}
        for item in boundaries:
            # Its maker compares its own Cria with it as long as it trains.
            if item.key in needed or item.key in self._deleted or maker(item, self._made).key not in complete:
                continue
            self._delete(item)
            there.discard(item.key)
        return there, needed

    def _delete(self, boundary: Artifact) -> None:
        """Delete a boundary, its manifest first, so that nothing ever reads half of it."""
        entries = [entry.path for entry in self._store.list(boundary.prefix)]
        for path in sorted(entries, key=lambda path: path != boundary.prefix + MANIFEST):
            self._store.delete(path)
        self._deleted.add(boundary.key)
