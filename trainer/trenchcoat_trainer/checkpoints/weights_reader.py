"""Reading objects of the teacher's weights in a thread, some of them before they are asked for."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

import torch

from trenchcoat_trainer.checkpoints.shards import read_weights
from trenchcoat_trainer.runtime.inputs import Inputs

POLL_SECONDS = 0.05
Tensors = dict[str, torch.Tensor]


class _GivenUpError(Exception):
    """Nobody wants the object any more."""


@dataclass(slots=True)
class _Read:
    future: Future[Tensors]
    given_up: Event


class WeightsReader:
    """Reads one object after another, each checked against its manifest; used from one thread."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._reads: dict[str, _Read] = {}

    def begin(self, path: str) -> None:
        """Read an object of the shard artifact from now on, once what was begun before is read."""
        if path in self._reads:
            return
        given_up = Event()

        def between() -> None:
            if given_up.is_set():
                raise _GivenUpError

        self._reads[path] = _Read(self._pool.submit(read_weights, self._inputs, path, between), given_up)

    def take(self, path: str, meanwhile: Callable[[], None]) -> Tensors:
        """The tensors of an object, on the CPU as they are stored; begins to read it where nobody has.

        Args:
            path: of the object.
            meanwhile: called again and again while it is not read yet; what it raises ends the wait.

        Raises:
            CorruptObjectError: size or checksum differ from the manifest.
            StoreError: the store cannot be reached.
        """
        self.begin(path)
        future = self._reads[path].future
        while not wait([future], POLL_SECONDS).done:
            meanwhile()
        return self._reads.pop(path).future.result()

    def keep(self, paths: Iterable[str]) -> None:
        """Give up what was begun of others than these."""
        for path in self._reads.keys() - set(paths):
            read = self._reads.pop(path)
            read.given_up.set()
            read.future.cancel()

    def close(self) -> None:
        """Give all up, and wait for the thread to end: at most for the piece that it is reading."""
        self.keep([])
        self._pool.shutdown()
