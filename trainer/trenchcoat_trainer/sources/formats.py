"""Documents of one file: Parquet, JSONL or plain text, the latter two perhaps compressed.

Memory is bounded whatever a file holds: plain text is cut into documents, a record of JSONL or a value of
Parquet may be MAX_DOCUMENT_BYTES long, and a Parquet file is read a few rows at a time.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, cast

import zstandard

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.store import Readable

PARQUET = ".parquet"
SUFFIXES = (PARQUET, *(f"{kind}{packing}" for kind in (".jsonl", ".txt") for packing in ("", ".gz", ".zst")))
PLAIN_DOCUMENT_CHARACTERS = 16_384
"""Plain text has no marks between documents: it is cut at blank lines into pieces of about this size."""
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""A record of JSONL or value of Parquet is held in memory as a whole: longer ones are refused."""
UNPACKED_BYTES = 1024
"""What is unpacked of a .zst file at a time: text that repeats itself may be thousands of times as long."""
PARQUET_ROWS = 64
"""Rows of a Parquet file that are decoded at a time."""
PARQUET_BUFFER_BYTES = 4 * 1024 * 1024
"""What is read of a Parquet file at a time: a request each, where it lies in a store."""


def read_documents(store: Readable, path: str, text_field: str) -> Iterator[str]:
    """Every document of a file, in order; empty ones are left out.

    Raises:
        BadInputError: the file cannot be unpacked or read; the message names the file and the line.
    """
    name = f"{store.name}/{path}"
    if path.endswith(PARQUET):
        yield from _parquet(store, path, text_field, name)
        return
    try:
        with _unpacked(path, store.stream(path)) as source:
            if ".jsonl" in _suffix(path):
                yield from _jsonl(source, text_field, name)
            else:
                yield from _plain(io.TextIOWrapper(source, encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name} is not UTF-8 ({error}): convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise BadInputError(f"{name} cannot be unpacked ({error}): it is damaged, replace it") from error


def check_text(text: object, field: str, place: str) -> str:
    """The text of a record, with nothing where there is none.

    Raises:
        BadInputError: the field holds something else.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadInputError(
            f"{place}: field {field!r} is no string: set spec.data.textField to the text's field"
        )
    return text


def _suffix(path: str) -> str:
    return next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.endswith(suffix))


def _unpacked(path: str, chunks: Iterator[bytes]) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=_buffered(chunks)), 1 << 20))
    return _buffered(_frames(chunks) if path.endswith(".zst") else chunks)


def _frames(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack zstd frames that follow one another; unlike the library's own reader, notice a cut end."""
    unpacker = None
    for chunk in chunks:
        view, at = memoryview(chunk), 0
        while at < len(view):
            unpacker = unpacker or zstandard.ZstdDecompressor().decompressobj()
            piece = view[at : at + UNPACKED_BYTES]
            at += len(piece)
            yield unpacker.decompress(piece)
            if unpacker.eof:
                at -= len(unpacker.unused_data)
                unpacker = None
    if unpacker is not None:
        raise EOFError("the last frame is cut short")


def _buffered(chunks: Iterator[bytes]) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Stream(chunks), 1 << 20))


def _jsonl(source: IO[bytes], field: str, name: str) -> Iterator[str]:
    number = 0
    while line := source.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise BadInputError(
                f"{name}, line {number}, is longer than {MAX_DOCUMENT_BYTES:,} bytes: cut the document, or "
                "give it as plain text (.txt)"
            )
        if not line.strip():
            continue
        try:
            text = json.loads(line.decode("utf-8"))[field]
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise BadInputError(f"{name}, line {number}, is not JSON ({error}): correct the file") from error
        except (KeyError, TypeError) as error:
            raise BadInputError(
                f"{name}, line {number}, has no field {field!r}: set spec.data.textField to the text's field"
            ) from error
        if text := check_text(text, field, f"{name}, line {number}"):
            yield text


def _plain(lines: io.TextIOWrapper) -> Iterator[str]:
    longest = 4 * PLAIN_DOCUMENT_CHARACTERS
    parts: list[str] = []
    size = 0
    # A line may be as long as the file.
    while line := lines.readline(longest):
        parts.append(line)
        size += len(line)
        at_blank = size >= PLAIN_DOCUMENT_CHARACTERS and not line.strip()
        if at_blank or size >= longest:
            yield "".join(parts)
            parts, size = [], 0
    if size:
        yield "".join(parts)


def _parquet(store: Readable, path: str, field: str, name: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(
            io.BufferedReader(_Ranges(store, path), PARQUET_BUFFER_BYTES),
            # A column of a row group is read bit by bit, not as a whole.
            buffer_size=PARQUET_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        if field not in file.schema_arrow.names:
            raise BadInputError(
                f"{name} has no column {field!r} (it has {', '.join(file.schema_arrow.names)}): set "
                "spec.data.textField to the text's column"
            )
        row = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field], use_threads=False):
            for value in batch.column(0):
                row += 1
                text = check_text(value.as_py(), field, f"{name}, row {row}")
                if len(text) > MAX_DOCUMENT_BYTES:
                    raise BadInputError(
                        f"{name}, row {row}, is longer than {MAX_DOCUMENT_BYTES:,} characters: cut the "
                        "document, or give it as plain text (.txt)"
                    )
                if text:
                    yield text
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{name} is no Parquet file, or damaged ({' '.join(str(error).split())}): replace it"
        ) from error


class _Stream(io.RawIOBase):
    """A file of pieces."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Ranges(io.RawIOBase):
    """An object of a store as a file that can be sought in."""

    def __init__(self, store: Readable, path: str) -> None:
        self._store = store
        self._path = path
        self._size = store.size(path)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: object, /) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        count = max(0, min(len(target), self._size - self._at))
        if count:
            target[:count] = self._store.read(self._path, self._at, count)
            self._at += count
        return count
