"""Reading the text in batches for the tokenizer, each document in its split, from any position on."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from trenchcoat_trainer.data.packing import Packer
from trenchcoat_trainer.sources.encoding import Batch, Piece, cut
from trenchcoat_trainer.sources.text import Text

BATCH_CHARACTERS = 250_000
"""Text that the tokenizer's threads are given at a time."""
BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the text reading goes on: so much of it has been packed."""

    part: int = 0
    document: int = 0
    """Documents of the part that are done."""
    piece: int = 0
    """Pieces of the next document that are done."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of a batch before it is encoded."""

    splits: list[str]
    """The split of each piece."""
    after: Position


def read_batches(
    text: Text, held_out_percent: int, packers: dict[str, Packer], start: Position
) -> Iterator[Batch[Read]]:
    """Read the text from `start` on, without what its split is known not to want any more."""
    pieces: list[Piece] = []
    splits: list[str] = []
    size = read = 0
    after = start
    for after, split, piece in _pieces(text, held_out_percent, start):
        read += 1
        size += len(piece.text)
        if not packers[split].is_full:
            pieces.append(piece)
            splits.append(split)
        if size >= BATCH_CHARACTERS or read >= BATCH_DOCUMENTS:
            yield Batch(pieces, Read(splits, after))
            pieces, splits, size, read = [], [], 0, 0
    if read:
        yield Batch(pieces, Read(splits, after))


def _pieces(text: Text, held_out_percent: int, start: Position) -> Iterator[tuple[Position, str, Piece]]:
    """Every piece of the text from `start` on, with its split and where the next one stands."""
    for part in range(start.part, text.parts):
        done = start.document if part == start.part else 0
        for number, document in enumerate(islice(text.part(part), done, None), done):
            split = "held_out" if is_held_out(document, held_out_percent) else "train"
            skip = start.piece if (part, number) == (start.part, start.document) else 0
            for index, piece in enumerate(islice(cut(document), skip, None), skip + 1):
                after = Position(part, number + 1) if piece.ends else Position(part, number, index)
                yield after, split, piece


def is_held_out(text: str, percent: int) -> bool:
    """Whether a document is held out: decided by its text alone, so that copies fall on the same side."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number % 100 < percent
