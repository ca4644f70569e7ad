"""Writing objects while the next ones are computed."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trenchcoat_api.artifacts import StoredObject

from trenchcoat_trainer.runtime.writer import ArtifactWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

THREADS = 4
PENDING = 16
"""Objects in memory that wait to be written, at most."""


class BackgroundWriter:
    """Writes in threads; leaving the context waits for all objects, and raises what failed."""

    def __init__(self, writer: ArtifactWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="write")
        self._pending: set[Future[StoredObject]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self._pool.shutdown(cancel_futures=kind is not None)

    def submit(
        self, path: str, tensors: dict[str, torch.Tensor], ready: Callable[[], None] | None = None
    ) -> None:
        """Write tensors as one object soon; waits while too many are pending.

        `ready` is called before, in the thread that writes: it waits for the tensors, and raises where they
        must not be written.
        """
        self._settle(PENDING - 1)
        self._pending.add(self._pool.submit(self._write, path, tensors, ready))

    def _write(
        self, path: str, tensors: dict[str, torch.Tensor], ready: Callable[[], None] | None
    ) -> StoredObject:
        if ready is not None:
            ready()
        return self._writer.write_tensors(path, tensors)

    def settle(self) -> None:
        """Wait until everything is written; raises what failed."""
        self._settle(0)

    def _settle(self, allowed: int) -> None:
        while len(self._pending) > allowed:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
