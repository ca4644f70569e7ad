"""The text that spec.data.source names, as documents in an order that never changes.

A source has parts, files or shards of a data set, that can be read each by itself: a reader that goes on in
the middle opens no part that it has read.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.formats import read_documents
from trenchcoat_trainer.sources.matching import match_text
from trenchcoat_trainer.store import Readable, Store
from trenchcoat_trainer.store.places import open_place

logger = logging.getLogger(__name__)

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
    files: tuple[tuple[str, int], ...]
    """Path and bytes of each."""
    text_field: str

    @property
    def parts(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def version(self) -> str | None:
        """Paths and sizes, as JSON."""
        return json.dumps(self.files)

    def part(self, index: int) -> Iterator[str]:
        """Every document of a file, in order; empty ones are left out.

        Raises:
            BadInputError: the file cannot be unpacked or read; the message names the file and the line.
        """
        return read_documents(self.store, self.files[index][0], self.text_field)


def open_text(spec: TrenchcoatSpec, store: Store, version: str | None = None) -> Text:
    """Find the text of spec.data.source; `store` is that of spec.store, for s3:// sources.

    `version` is that of an earlier attempt, which is then read again even if the source has a newer one.

    Raises:
        BadInputError: no file matches, or one that does is of an unknown kind; one that an earlier attempt
            has read is gone; or there is no such data set.
        StoreError: its store cannot be used.
    """
    source = spec.data.source
    if source.startswith(HUB):
        from trenchcoat_trainer.sources.hub_dataset import HubDataset

        return HubDataset(source.removeprefix(HUB), spec.data, version)
    place, pattern = open_place("spec.data.source", source, store)
    sizes = match_text(source, place, pattern)
    if version is not None:
        sizes = _as_before(source, dict(json.loads(version)), sizes)
    return TextFiles(place, tuple(sizes.items()), spec.data.text_field)


def _as_before(source: str, before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """The files of an earlier attempt, which are read on though others have come.

    Raises:
        BadInputError: one is gone or has changed.
    """
    for path, size in before.items():
        if now.get(path) != size:
            what = "is gone" if path not in now else f"has {now[path]} bytes in place of {size}"
            raise BadInputError(
                f"spec.data.source {source}: {path} {what} since an earlier attempt has read the text in "
                "part: put it back, or give the text another name and set spec.data.source to it"
            )
    if added := [path for path in now if path not in before]:
        logger.warning(
            "%s: %d files have come since the text began to be read, such as %s: they are left out",
            source, len(added), added[0],
        )  # fmt: skip
    return before
