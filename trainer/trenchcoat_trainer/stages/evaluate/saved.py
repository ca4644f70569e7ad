"""Saving hidden states from time to time, so that an evaluation that was stopped goes on from there."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS

HIDDEN = "hidden"
THREADS = 2
PENDING = 4
"""Batches in memory that wait to be saved, at most."""


class SavedStates:
    """One object for each batch of states, which says by itself how many Crias the batch has passed.

    Objects are written in the background, each batch's at most every half minute, and none while too many
    wait: saving never holds the evaluation up, and a batch that was not saved is computed again.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = set(checkpoint.names())
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="save")
        self._pending: list[Future[None]] = []
        self._saved_at: dict[str, float] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            self._raise_failures(self._pending)

    def load(self, states: str, batch: int) -> tuple[torch.Tensor, dict[str, Any]] | None:
        """Hidden states of a batch, on the CPU, and the state saved with them; none if there are none.

        Args:
            states: a name of which states they are, and in which batches.
            batch: counted from 0.

        Raises:
            CorruptObjectError: they cannot be read.
        """
        name = _name(states, batch)
        saved = self._checkpoint.load(name) if name in self._names else None
        return (saved[0][HIDDEN], saved[1]) if saved else None

    def offer(self, states: str, batch: int, hidden: torch.Tensor, state: dict[str, Any]) -> None:
        """Save a copy of these hidden states, on the CPU, if the batch's turn has come; `state` is JSON."""
        name, now = _name(states, batch), time.monotonic()
        done = [future for future in self._pending if future.done()]
        self._raise_failures(done)
        self._pending = [future for future in self._pending if not future.done()]
        due = now - self._saved_at.get(name, self._began) >= CHECKPOINT_SECONDS
        if due and len(self._pending) < PENDING:
            self._saved_at[name] = now
            save = self._checkpoint.save
            self._pending.append(self._pool.submit(save, {HIDDEN: hidden.clone()}, state, name))

    @staticmethod
    def _raise_failures(futures: list[Future[None]]) -> None:
        for future in futures:
            future.result()


def _name(states: str, batch: int) -> str:
    return f"{states}-{batch:05d}"
