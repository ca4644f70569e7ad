"""Saving hidden states from time to time, so that an evaluation that was stopped goes on from there."""

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self

import torch
from trenchcoat_api.evaluation_states import PENDING

from trenchcoat_trainer.runtime.checkpoint import Checkpoint
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS

HIDDEN = "hidden"
THREADS = 2


class SavedStates:
    """One object for each batch of states, which says by itself how many Crias the batch has passed.

    Objects are written in the background. Of states that are in memory too, each batch's is at most every
    half minute, and none while too many wait: saving never holds the evaluation up, and a batch that was not
    saved is computed again.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = set(checkpoint.names())
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="save")
        self._pending: dict[str, Future[None]] = {}
        self._saved_at: dict[str, float] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._pending.values():
                future.result()

    def load(self, states: str, batch: int) -> tuple[torch.Tensor, dict[str, Any]] | None:
        """Hidden states of a batch, on the CPU, and the state saved with them; none if there are none.

        Args:
            states: a name of which states they are, and in which batches.
            batch: counted from 0.

        Raises:
            CorruptObjectError: they cannot be read.
        """
        name = _name(states, batch)
        if pending := self._pending.get(name):
            pending.result()
        saved = self._checkpoint.load(name) if name in self._names else None
        return (saved[0][HIDDEN], saved[1]) if saved else None

    def state(self, states: str, batch: int) -> dict[str, Any] | None:
        """The state saved with a batch, without its hidden states: as `load`."""
        name = _name(states, batch)
        return self._checkpoint.state(name) if name in self._names else None

    def offer(self, states: str, batch: int, hidden: torch.Tensor, state: dict[str, Any]) -> None:
        """Save a copy of these hidden states if the batch's turn has come; `state` is JSON."""
        name, now = _name(states, batch), time.monotonic()
        self._forget_done()
        due = now - self._saved_at.get(name, self._began) >= CHECKPOINT_SECONDS
        if due and len(self._pending) < PENDING and name not in self._pending:
            self._saved_at[name] = now
            self._save(name, hidden.to("cpu", copy=True), state)

    def keep(self, states: str, batch: int, hidden: torch.Tensor, state: dict[str, Any]) -> None:
        """Save these hidden states, on the CPU, which nobody else keeps; waits while too many are written."""
        self._forget_done()
        while len(self._pending) >= PENDING:
            wait(self._pending.values(), return_when=FIRST_COMPLETED)
            self._forget_done()
        self._save(_name(states, batch), hidden, state)

    def _save(self, name: str, hidden: torch.Tensor, state: dict[str, Any]) -> None:
        self._pending[name] = self._pool.submit(self._checkpoint.save, {HIDDEN: hidden}, state, name)
        self._names.add(name)

    def _forget_done(self) -> None:
        for name in [name for name, future in self._pending.items() if future.done()]:
            self._pending.pop(name).result()


def _name(states: str, batch: int) -> str:
    return f"{states}-{batch:05d}"
