"""Turning documents into token ids, by the library's threads in this process, or in several processes.

Threads begin at once, processes scale further. A worker needs the `tokenizers` library alone, so that it
starts quickly and takes little memory.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from tokenizers import Tokenizer

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.runtime.cores import usable_cores
from trenchcoat_trainer.runtime.in_order import in_order

ENV_PROCESSES = "TRENCHCOAT_TOKENIZE_PROCESSES"
"""Processes that encode text, in place of one for each CPU core at hand."""
MAX_PROCESSES = 16
"""More do not help: reading and packing are left to one process."""
BATCHES = 4
"""Encoded at a time in one process: what keeps other threads busy while one has a long document."""
PIECE_CHARACTERS = 1_000_000
"""A longer document is encoded in pieces, cut before a space where there is one."""

Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one."""

    text: str
    begins: bool = True
    """Whether it is the first of its document."""
    ends: bool = True
    """Whether it is the last of its document."""


def cut(document: str) -> Iterator[Piece]:
    """Cut a document into pieces of at most PIECE_CHARACTERS."""
    start = 0
    while len(document) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        space = max(document.rfind(" ", start + 1, stop), document.rfind("\n", start + 1, stop))
        stop = space if space > 0 else stop
        yield Piece(document[start:stop], begins=start == 0, ends=False)
        start = stop
    yield Piece(document[start:], begins=start == 0)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer in a form that travels between processes."""

    tokenizer: str
    """As tokenizer.json has it."""
    end: int | None
    """Id that ends a document."""

    def encode(self, tokenizer: Tokenizer, pieces: list[Piece]) -> list[np.ndarray]:
        """Token ids of each piece, int32, with the tokenizer's marks at the begin and end of a document.

        Raises:
            BadInputError: the tokenizer has no tokens for a text.
        """
        ids: list[list[int]] = [[] for _ in pieces]
        for begins in (True, False):
            chosen = [index for index, piece in enumerate(pieces) if piece.begins is begins]
            if chosen:
                texts = [pieces[index].text for index in chosen]
                try:
                    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=begins)
                except Exception as error:  # the library raises bare ones
                    raise BadInputError(
                        f"the teacher's tokenizer cannot encode the text ({error}): give it a tokenizer.json "
                        "that has a token for everything"
                    ) from error
                for index, encoding in zip(chosen, encoded, strict=True):
                    ids[index] = encoding.ids
        return [np.asarray(self._ended(piece, own), np.int32) for piece, own in zip(pieces, ids, strict=True)]

    def _ended(self, piece: Piece, ids: list[int]) -> list[int]:
        has_end = bool(ids) and ids[-1] == self.end
        if self.end is None or has_end == piece.ends:
            return ids
        return [*ids, self.end] if piece.ends else ids[:-1]

    def load(self) -> Tokenizer:
        """The tokenizer itself."""
        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


@dataclass(frozen=True, slots=True)
class Batch(Generic[Tag]):
    """Pieces that are encoded together, with whatever their reader wants to know again."""

    pieces: list[Piece]
    tag: Tag


def encode_batches(
    encoder: Encoder, batches: Iterable[Batch[Tag]], processes: int
) -> Iterator[tuple[Batch[Tag], list[np.ndarray]]]:
    """Yield every batch with the ids of its pieces, in order, whatever the number of processes.

    Up to two batches a process are in memory. A text of a single batch is encoded here, and so is any where
    there is to be a single process: by threads, while the next batch is read.

    Raises:
        StageError: a worker was killed.
    """
    source = iter(batches)
    first = list(islice(source, 2))
    if processes <= 1 or len(first) < 2:
        yield from _by_threads(encoder, chain(first, source))
    else:
        yield from _by_processes(encoder, chain(first, source), processes)


def _by_threads(
    encoder: Encoder, batches: Iterable[Batch[Tag]]
) -> Iterator[tuple[Batch[Tag], list[np.ndarray]]]:
    tokenizer = encoder.load()
    with ThreadPoolExecutor(BATCHES, thread_name_prefix="encode") as pool:
        yield from in_order(
            lambda batch: pool.submit(encoder.encode, tokenizer, batch.pieces), batches, BATCHES + 1
        )


def _by_processes(
    encoder: Encoder, batches: Iterable[Batch[Tag]], processes: int
) -> Iterator[tuple[Batch[Tag], list[np.ndarray]]]:
    with tempfile.TemporaryDirectory() as folder:
        # A file, for what it is given itself a worker takes only once it has started: the next would wait.
        file = Path(folder, "tokenizer.json")
        file.write_text(encoder.tokenizer, encoding="utf-8")
        # Spawned, because forking copies locks that threads of this process may hold.
        pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(file, encoder.end),
        )
        yield from _encoded(pool, batches, 2 * processes)


def _encoded(
    pool: ProcessPoolExecutor, batches: Iterable[Batch[Tag]], depth: int
) -> Iterator[tuple[Batch[Tag], list[np.ndarray]]]:
    resource_tracker.ensure_running()  # to start it takes back what `_unheard` blocks

    def submit(batch: Batch[Tag]) -> Future[list[np.ndarray]]:
        with _unheard():  # which starts a worker where there are too few
            # Without the tag: a worker would import what it is made of.
            return pool.submit(_encode_in_worker, batch.pieces)

    try:
        yield from in_order(submit, batches, depth)
    except BrokenProcessPool as error:
        raise StageError(
            "a process that encodes text was killed, perhaps for want of memory: raise "
            f"spec.pods.tokenize.resources.memory, or set {ENV_PROCESSES} to fewer"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_processes(useful: int = MAX_PROCESSES) -> int:
    """How many processes to encode in: as the environment says, or one a CPU at hand, up to `useful`."""
    named = os.environ.get(ENV_PROCESSES)
    return int(named) if named else min(MAX_PROCESSES, usable_cores(), useful)


@contextmanager
def _unheard() -> Iterator[None]:
    """Let processes that are started within hear of neither Ctrl-C nor the end of the terminal, ever.

    The stage decides what these mean: a worker that they end, be it while it starts, would fail the stage
    before it has saved anything.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: tuple[Encoder, Tokenizer] | None = None


def _start_worker(file: Path, end: int | None) -> None:
    global _worker
    # The end of the stage is the end of its workers, even when it is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = Encoder(file.read_text(encoding="utf-8"), end)
    _worker = encoder, encoder.load()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(pieces: list[Piece]) -> list[np.ndarray]:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    encoder, tokenizer = _worker
    return encoder.encode(tokenizer, pieces)
