"""Documents from text files: JSONL or plain text, perhaps compressed, in the store or in a folder."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.store import FolderStore, Readable, Store

SUFFIXES = tuple(f"{kind}{packing}" for kind in (".jsonl", ".txt") for packing in ("", ".gz", ".zst"))
PLAIN_DOCUMENT_CHARACTERS = 16_384
"""Plain text has no marks between documents: it is cut at blank lines into pieces of about this size."""


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The files that spec.data.source names, in order of path."""

    store: Readable
    paths: tuple[str, ...]
    text_field: str

    def documents(self) -> Iterator[str]:
        """Every document of every file, in order; empty ones are left out.

        Raises:
            BadInputError: a file cannot be unpacked or read; the message names the file and the line.
        """
        for path in self.paths:
            yield from self._read(path)

    def _read(self, path: str) -> Iterator[str]:
        name = f"{self.store.name}/{path}"
        try:
            with io.TextIOWrapper(_unpacked(path, self.store.stream(path)), encoding="utf-8") as lines:
                if ".jsonl" in _suffix(path):
                    yield from _jsonl(lines, self.text_field, name)
                else:
                    yield from _plain(lines)
        except UnicodeDecodeError as error:
            raise BadInputError(f"{name} is not UTF-8 ({error}): convert it") from error
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise BadInputError(f"{name} cannot be unpacked ({error}): it is damaged, replace it") from error


def open_text(spec: TrenchcoatSpec, store: Store) -> TextFiles:
    """Find the files of spec.data.source; `store` is that of spec.store, for s3:// sources.

    A source without wildcards may name a file, or a folder, of which all text files are taken.

    Raises:
        BadInputError: no file matches, or one that does is of an unknown kind.
        StoreError: its store cannot be used.
    """
    source = spec.data.source
    scheme, _, rest = source.partition("://")
    place: Readable
    if scheme == "s3":
        bucket, _, pattern = rest.partition("/")
        place = store.in_bucket(bucket)
    else:
        place, pattern = FolderStore(Path("/")), rest.lstrip("/")
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    listed = [entry.path for entry in place.list(literal)]
    if literal == pattern and pattern not in listed:
        folder = pattern.rstrip("/") + "/"
        paths = [path for path in listed if path.startswith(folder) and path.endswith(SUFFIXES)]
    else:
        wanted = re.compile(_regex(pattern))
        paths = [path for path in listed if wanted.fullmatch(path)]
    if not paths:
        raise BadInputError(
            f"spec.data.source {source} matches no text file: correct it, or put the text there"
        )
    for path in paths:
        if not path.endswith(SUFFIXES):
            raise BadInputError(
                f"spec.data.source {source} matches {path}, whose name ends in none of "
                f"{', '.join(SUFFIXES)}: narrow the pattern or rename the file"
            )
    return TextFiles(place, tuple(paths), spec.data.text_field)


def _regex(pattern: str) -> str:
    """A glob as a regular expression: * and ? stay within a folder, ** crosses folders."""
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|[^*?]", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(part) or _set_or_literal(part) for part in parts)


def _set_or_literal(part: str) -> str:
    if len(part) > 1 and part.startswith("["):
        return "[^" + part[2:] if part.startswith("[!") else part
    return re.escape(part)


def _suffix(path: str) -> str:
    return next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.endswith(suffix))


def _unpacked(path: str, chunks: Iterator[bytes]) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=_buffered(chunks)))
    return _buffered(_frames(chunks) if path.endswith(".zst") else chunks)


def _frames(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack zstd frames that follow one another; unlike the library's own reader, notice a cut end."""
    frame = None
    for chunk in chunks:
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is cut short")


def _buffered(chunks: Iterator[bytes]) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Stream(chunks), 1 << 20))


def _jsonl(lines: Iterator[str], field: str, name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[field]
        except ValueError as error:
            raise BadInputError(f"{name}, line {number}, is not JSON ({error}): correct the file") from error
        except (KeyError, TypeError) as error:
            raise BadInputError(
                f"{name}, line {number}, has no field {field!r}: set spec.data.textField to the text's field"
            ) from error
        if not isinstance(text, str):
            raise BadInputError(
                f"{name}, line {number}: field {field!r} is no string: set spec.data.textField to the "
                "text's field"
            )
        if text:
            yield text


def _plain(lines: Iterator[str]) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    for line in lines:
        parts.append(line)
        size += len(line)
        at_blank = size >= PLAIN_DOCUMENT_CHARACTERS and not line.strip()
        if at_blank or size >= 4 * PLAIN_DOCUMENT_CHARACTERS:
            yield "".join(parts)
            parts, size = [], 0
    if size:
        yield "".join(parts)


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
