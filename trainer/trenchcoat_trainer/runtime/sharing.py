"""Ranks that share a list of work out: whose each item is, how much all have done, when all have come.

None waits for another but where it says so, and then without end, looking whether it shall stop: a share may
take longer than a collective operation would wait. So ranks of a pod meet here before each such operation.
What they know of one another stands in the key-value store of their process group, which the first rank
holds.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from trenchcoat_trainer.errors import PreemptedError, StageError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.ranks import JOIN_TIMEOUT, key_value_store, tell_stop, told_stop

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_GO_ON, _END = "go on", "end"
_STOPPED = "another rank was asked to stop; what is done is saved, the next start goes on from it"
LEAVE_SECONDS = 30.0
"""The first rank waits for the others to leave, at most so long: without its store they would fail."""


class Sharing:
    """One rank's place among those that share work."""

    def __init__(self, context: StageContext) -> None:
        """The ranks must have joined, where there are several."""
        self.rank, self.world_size = context.rank, context.world_size
        self._stop = context.stop
        self._store = key_value_store() if self.world_size > 1 else dist.HashStore()
        size = context.local_world_size if self.world_size > 1 else 1
        first = self.rank - self.rank % size
        self.pod = range(first, first + size)
        """The ranks of this one's pod."""
        self.pod_group = dist.new_subgroups(size, timeout=JOIN_TIMEOUT)[0] if size > 1 else None
        """Their process group, for collective operations; None where it is alone."""

    @property
    def is_first(self) -> bool:
        """Whether this rank does what one alone must."""
        return self.rank == 0

    def own(self, first: int, count: int) -> range:
        """The numbers, from 0, of this rank's among `count` items, where `first` are dealt already."""
        return range((self.rank - first) % self.world_size, count, self.world_size)

    def add(self, name: str, amount: int) -> int:
        """Add to a number that all ranks add to, and return it.

        Raises:
            StageError: the first rank is gone.
        """
        with self._reaching():
            return int(self._store.add(f"trenchcoat/{name}", amount))

    def check(self) -> None:
        """Raise PreemptedError if this rank or another was asked to stop; where nothing is left unsaved.

        Raises:
            StageError: the first rank is gone.
        """
        self._stop.check()
        if self.world_size > 1:
            with self._reaching():
                is_told = told_stop(self._stop)
            if is_told:
                raise PreemptedError(_STOPPED)

    def wait_for_all(self, place: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until every rank has come to a place, whose name is used once.

        Args:
            place: its name.
            meanwhile: called again and again.

        Raises:
            PreemptedError: a stop was requested.
            StageError: the first rank is gone.
        """
        self._arrive(place)
        while not self._are_at(place, range(self.world_size)):
            self.check()
            meanwhile()
            time.sleep(POLL_SECONDS)
        meanwhile()

    def meet(self, place: str, said: str, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        """Wait until every rank of the pod has come to a place, from which all of them go on, or none does.

        A collective operation may follow: no rank waits in it for one that was asked to stop in between.

        Args:
            place: its name, which a pod uses once.
            said: what the others are told.
            meanwhile: called again and again.

        Returns:
            What each rank of the pod has said, in order.

        Raises:
            PreemptedError: a stop was requested; every rank of the pod that has come raises it.
            StageError: the first rank is gone.
        """
        self._arrive(place, said)
        stops = False
        while not (stops or self._are_at(place, self.pod)):
            meanwhile()
            time.sleep(POLL_SECONDS)
            with self._reaching():
                stops = told_stop(self._stop)
        with self._reaching():
            # The first to decide does so for all.
            decided = self._store.compare_set(_key(place, self.pod), "", _END if stops else _GO_ON)
            if decided.decode() == _GO_ON:
                return [self._store.get(_key(place, rank)).decode() for rank in self.pod]
        self._stop.check()
        raise PreemptedError(_STOPPED)

    def leave(self, *, waits: bool) -> None:
        """Say that this rank needs the first one no longer; the last thing that it does.

        Args:
            waits: whether the first rank waits for the others to say so.

        Raises:
            StageError: the first rank is gone.
        """
        others = range(1, self.world_size)
        with self._reaching():
            tell_stop(self._stop)
        if not self.is_first:
            self._arrive("left")
            return
        deadline = time.monotonic() + LEAVE_SECONDS
        while waits and not self._are_at("left", others) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _arrive(self, place: str, said: str = "1") -> None:
        with self._reaching():
            self._store.set(_key(place, self.rank), said)

    def _are_at(self, place: str, ranks: range) -> bool:
        with self._reaching():
            return not ranks or self._store.check([_key(place, rank) for rank in ranks])

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            self._stop.check()  # then the first rank was asked as well, and could not wait
            raise StageError(
                f"the first rank is gone, which the others need: see its log ({error})"
            ) from error


@contextmanager
def shared_out(context: StageContext) -> Iterator[Sharing]:
    """This rank's place among those that have joined; at the end, and at a stop, it leaves them in order."""
    sharing, waits = Sharing(context), False
    try:
        yield sharing
        waits = True
    except PreemptedError:
        waits = True
        raise
    finally:
        try:
            sharing.leave(waits=waits)
        except StageError as error:  # nobody is left who would have to know
            logger.info("%s", error)


def _key(place: str, whose: int | range) -> str:
    name = whose if isinstance(whose, int) else f"{whose.start} to {whose.stop - 1}"
    return f"trenchcoat/{place}/{name}"
