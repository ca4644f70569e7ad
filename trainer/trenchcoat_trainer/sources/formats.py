"""Documents of one file: Parquet, JSONL or plain text, the latter two perhaps compressed.

Memory is bounded whatever a file holds: plain text is cut into documents, a record of JSONL or a value of
Parquet may be MAX_DOCUMENT_BYTES long, and a Parquet file is read a few rows at a time.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

import zstandard

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.store import Readable

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = ".parquet"
JSON_LINES = (".jsonl", ".ndjson", ".json")
PLAIN = ".txt"
PACKINGS = (".gz", ".zst", "")
SUFFIXES = (PARQUET, *(f"{kind}{packing}" for kind in (*JSON_LINES, PLAIN) for packing in reversed(PACKINGS)))
"""In small letters; names may have large ones."""
PLAIN_DOCUMENT_CHARACTERS = 16_384
"""Plain text has no marks between documents: it is cut at blank lines into pieces of about this size."""
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""A record of JSONL or value of Parquet is held in memory as a whole: longer ones are refused."""
MAX_WINDOW_BYTES = 1 << 31
"""How far back a .zst file may refer, which its reader holds in memory: all that `zstd --long=31` makes."""
UNPACKED_BYTES = 1024
"""What is unpacked of a .zst file at a time: text that repeats itself may be thousands of times as long."""
_SURROGATES = re.compile("[\ud800-\udfff]")
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
    suffix = suffix_of(path)
    if suffix == PARQUET:
        yield from _parquet(store, path, text_field, name)
        return
    if path.lower().endswith(PACKINGS[:2]) and store.size(path) == 0:
        raise BadInputError(f"{name} is empty, not even an archive of nothing: fetch or make it anew")
    try:
        with _unpacked(path, store.stream(path)) as source:
            if suffix is not None and suffix.startswith(JSON_LINES):
                yield from _jsonl(source, text_field, name)
            else:
                yield from _plain(io.TextIOWrapper(source, encoding="utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name} is not UTF-8 ({error}): convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        if "requires too much memory" in str(error):
            raise BadInputError(
                f"{name} refers further back than {MAX_WINDOW_BYTES:,} bytes: pack it anew, with zstd "
                "--long=31 at most"
            ) from error
        raise BadInputError(f"{name} cannot be unpacked ({error}): it is damaged, replace it") from error


def suffix_of(path: str) -> str | None:
    """The ending that tells what kind of text a file holds, in small letters; None where it is no text's."""
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)


def check_text(text: object, field: str, place: str) -> str:
    """The text of a record, with nothing where there is none.

    JSON escapes can name halves of characters that no encoding has: each becomes U+FFFD, as decoders put it.

    Raises:
        BadInputError: the field holds something else.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadInputError(
            f"{place}: field {field!r} is no string: set spec.data.textField to the text's field"
        )
    try:
        text.encode()  # takes a tenth of a search for them
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def _unpacked(path: str, chunks: Iterator[bytes]) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=_buffered(chunks)), 1 << 20))
    return _buffered(_frames(chunks) if path.lower().endswith(".zst") else chunks)


def _frames(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack zstd frames that follow one another; unlike the library's own reader, notice a cut end."""
    unpacker = None
    for chunk in chunks:
        view, at = memoryview(chunk), 0
        while at < len(view):
            unpacker = (
                unpacker or zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
            )
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
        place = f"{name}, line {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        _refuse_nul(b"\0" in line, place)
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadInputError(f"{place}, is not UTF-8 ({error}): convert the file") from error
        except (ValueError, RecursionError) as error:
            raise BadInputError(
                f"{place}, is not JSON ({error}): correct the file; every line must be a record of its own"
            ) from error
        if not isinstance(record, dict) or field not in record:
            raise BadInputError(
                f"{place}, has no field {field!r}: set spec.data.textField to the text's field"
            )
        if text := check_text(record[field], field, place):
            yield text


def _refuse_nul(found: bool, place: str) -> None:
    if found:
        raise BadInputError(
            f"{place}, holds a NUL, which text does not: it may be UTF-16, convert it to UTF-8"
        )


def _plain(lines: io.TextIOWrapper, name: str) -> Iterator[str]:
    longest = 4 * PLAIN_DOCUMENT_CHARACTERS
    parts: list[str] = []
    size = 0
    # A line may be as long as the file.
    while line := lines.readline(longest):
        _refuse_nul("\0" in line, name)
        parts.append(line)
        size += len(line)
        at_blank = size >= PLAIN_DOCUMENT_CHARACTERS and not line.strip()
        if at_blank or size >= longest:
            yield "".join(parts)
            parts, size = [], 0
    if size:
        yield "".join(parts)


def _parquet(store: Readable, path: str, field: str, name: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(
            io.BufferedReader(_Ranges(store, path), PARQUET_BUFFER_BYTES),
            # A column of a row group is read bit by bit, not as a whole.
            buffer_size=PARQUET_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        _refuse_nested(file.schema_arrow, field, name)
        if field not in file.schema_arrow.names:
            raise BadInputError(
                f"{name} has no column {field!r} (it has {', '.join(file.schema_arrow.names)}): set "
                "spec.data.textField to the text's column"
            )
        row = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field], use_threads=False):
            for value in batch.column(0):
                row += 1
                text = _parquet_text(value, field, f"{name}, row {row}")
                if len(text) > MAX_DOCUMENT_BYTES:
                    raise BadInputError(
                        f"{name}, row {row}, is longer than {MAX_DOCUMENT_BYTES:,} characters: cut the "
                        "document, or give it as plain text (.txt)"
                    )
                if text:
                    yield text
    except StageError:
        raise  # what this has found, or the store
    except Exception as error:  # whatever the library makes of a file that it cannot read
        raise BadInputError(
            f"{name} is no Parquet file, damaged, or of a kind that cannot be read "
            f"({' '.join(str(error).split())}): write it anew"
        ) from error


def _refuse_nested(schema: pa.Schema, field: str, name: str) -> None:
    """Refuse a path into a column, and a column that holds more than text."""
    import pyarrow.types as kinds

    column = field if field in schema.names else field.partition(".")[0]
    if column in schema.names and kinds.is_nested(schema.field(column).type):
        raise BadInputError(
            f"{name}: column {column!r} is nested ({schema.field(column).type}), and no text is read from "
            "within columns: write the text to a column of its own, and set spec.data.textField to that"
        )


def _parquet_text(value: pa.Scalar, field: str, place: str) -> str:
    """The text of a value; columns without the mark that says so may hold text, too."""
    try:
        text = value.as_py()
        return check_text(text.decode() if isinstance(text, bytes) else text, field, place)
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{place}: field {field!r} is not UTF-8 ({error.reason} at byte {error.start}): convert it, or "
            "set spec.data.textField to the text's field"
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
