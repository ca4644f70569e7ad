"""How an object is put together of others' bytes on the store's own side, in parts that S3 allows.

S3 copies a byte range into a part of a multipart upload, but every part except the last must have 5 MiB. What
is smaller, such as the header of a safetensors object, goes up together with the beginning of what follows.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

MIN_BYTES = 5 * 1024 * 1024
MAX_UPLOAD_BYTES = 16 * 1024 * 1024
"""A part that is uploaded is held in memory."""
MAX_COPY_BYTES = 256 * 1024 * 1024
"""S3 allows 5 GiB, but a part is one request, which answers only once it is copied."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of an object."""

    path: str
    offset: int
    length: int

    def cut(self, size: int) -> tuple["Span", "Span"]:
        """The first `size` bytes, and the rest."""
        return Span(self.path, self.offset, size), Span(self.path, self.offset + size, self.length - size)


Piece = bytes | Span


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an object: either one span that the store copies, or pieces that are uploaded."""

    pieces: tuple[Piece, ...]
    is_copied: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(_size, self.pieces))


@dataclass(frozen=True, slots=True)
class Composed:
    """How a store sums up an object that it put together."""

    etag: str
    """Hex digits of the MD5 of the parts' MD5s, a dash and their number."""
    part_sizes: list[int]


def plan_parts(pieces: Iterable[Piece]) -> list[Part]:
    """Cut pieces that follow one another into parts, as much of them copied as can be.

    Every part but the last has at least MIN_BYTES.
    """
    parts: list[Part] = []
    waiting: list[Piece] = []

    def upload() -> None:
        if waiting:
            parts.append(Part(tuple(waiting), is_copied=False))
            waiting.clear()

    for piece in _joined(pieces):
        if isinstance(piece, Span):
            missing = _missing(waiting)
            if piece.length >= missing + MIN_BYTES:
                if missing:
                    first, piece = piece.cut(missing)
                    waiting.append(first)
                upload()
                parts.extend(_copies(piece))
                continue
        waiting.append(piece)
        if sum(map(_size, waiting)) > MAX_UPLOAD_BYTES - MIN_BYTES:
            upload()
    upload()
    return parts


def _size(piece: Piece) -> int:
    return piece.length if isinstance(piece, Span) else len(piece)


def _missing(waiting: list[Piece]) -> int:
    """Bytes that what waits to be uploaded lacks to be a part."""
    return max(0, MIN_BYTES - sum(map(_size, waiting))) if waiting else 0


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same bytes, spans that follow one another in one object made one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else b""
        if (
            isinstance(piece, Span)
            and isinstance(last, Span)
            and (last.path, last.offset + last.length) == (piece.path, piece.offset)
        ):
            joined[-1] = Span(last.path, last.offset, last.length + piece.length)
        elif _size(piece):
            joined.append(piece)
    return joined


def _copies(span: Span) -> list[Part]:
    """Parts of nearly equal size, none too large."""
    count = -(-span.length // MAX_COPY_BYTES)
    bounds = [span.length * index // count for index in range(count + 1)]
    return [
        Part((Span(span.path, span.offset + first, last - first),), is_copied=True)
        for first, last in itertools.pairwise(bounds)
    ]
