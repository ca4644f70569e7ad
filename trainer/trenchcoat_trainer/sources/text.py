"""The text that spec.data.source names, as documents in an order that never changes.

A source has parts, files or shards of a data set, that can be read each by itself: a reader that goes on in
the middle opens no part that it has read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.formats import SUFFIXES, read_documents
from trenchcoat_trainer.store import FolderStore, Readable, Store

HUB = "hf://datasets/"


class Text(Protocol):
    """Documents in parts."""

    @property
    def parts(self) -> int:
        """Number of parts."""

    @property
    def version(self) -> str | None:
        """Which version of a source that may change; `open_text` takes it to open the same again."""

    def part(self, index: int) -> Iterator[str]:
        """Every document of a part, in order; empty ones are left out.

        Raises:
            BadInputError: the part cannot be read; the message says where.
        """


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The files that spec.data.source names, in order of path; a part each."""

    store: Readable
    paths: tuple[str, ...]
    text_field: str

    @property
    def parts(self) -> int:
        """Number of files."""
        return len(self.paths)

    @property
    def version(self) -> str | None:
        """Files have none."""
        return None

    def part(self, index: int) -> Iterator[str]:
        """Every document of a file, in order; empty ones are left out.

        Raises:
            BadInputError: the file cannot be unpacked or read; the message names the file and the line.
        """
        return read_documents(self.store, self.paths[index], self.text_field)


def open_text(spec: TrenchcoatSpec, store: Store, version: str | None = None) -> Text:
    """Find the text of spec.data.source; `store` is that of spec.store, for s3:// sources.

    A source without wildcards may name a file, or a folder, of which all text files are taken. `version` is
    that of an earlier attempt, which is then read again even if the source has a newer one.

    Raises:
        BadInputError: no file matches, or one that does is of an unknown kind; or there is no such data set.
        StoreError: its store cannot be used.
    """
    source = spec.data.source
    if source.startswith(HUB):
        from trenchcoat_trainer.sources.hub_dataset import HubDataset

        return HubDataset(source.removeprefix(HUB), spec.data, version)
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
