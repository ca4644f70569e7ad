"""The second text that the evaluation reads, spec.evaluate.otherText."""

from collections.abc import Iterator

import numpy as np
from trenchcoat_api.spec import OtherText

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.encoding import Batch, Encoder, Piece, cut, encode_batches
from trenchcoat_trainer.sources.matching import match_text
from trenchcoat_trainer.sources.text import TextFiles
from trenchcoat_trainer.store import Store
from trenchcoat_trainer.store.places import open_place

FIELD = "spec.evaluate.otherText.source"
BATCH_CHARACTERS = 1_000_000


def open_other_text(asked: OtherText, store: Store) -> TextFiles:
    """Find the text; `store` is that of spec.store, for s3:// sources.

    Raises:
        BadInputError: no file matches, or one that does is of an unknown kind.
        StoreError: its store cannot be used.
    """
    place, pattern = open_place(FIELD, asked.source, store)
    try:
        sizes = match_text(asked.source, place, pattern)
    except BadInputError as error:
        # Whoever matches files takes them for the training text.
        raise BadInputError(str(error).replace("spec.data.source", FIELD)) from error
    return TextFiles(place, tuple(sizes.items()), asked.text_field)


def other_sequences(asked: OtherText, store: Store, encoder: Encoder, length: int) -> np.ndarray:
    """Read as much of the text as is asked for, int32 [sequences, `length`], documents end to end.

    Raises:
        BadInputError: it cannot be read, or is shorter than a sequence.
        StoreError: its store cannot be used.
    """
    text = open_other_text(asked, store)
    wanted = max(1, asked.tokens // length) * length
    found: list[np.ndarray] = []
    held = 0
    for _, ids in encode_batches(encoder, _batches(text), 1):
        found += ids
        held += sum(map(len, ids))
        if held >= wanted:
            break
    if held < length:
        raise BadInputError(
            f"{FIELD} {asked.source} holds {held} tokens, less than a sequence of {length}: give more text, "
            "or remove spec.evaluate.otherText"
        )
    return np.concatenate(found)[: min(held, wanted) // length * length].reshape(-1, length)


def _batches(text: TextFiles) -> Iterator[Batch[None]]:
    pieces: list[Piece] = []
    size = 0
    for part in range(text.parts):
        for document in text.part(part):
            for piece in cut(document):
                pieces.append(piece)
                size += len(piece.text)
                if size >= BATCH_CHARACTERS:
                    yield Batch(pieces, None)
                    pieces, size = [], 0
    if pieces:
        yield Batch(pieces, None)
