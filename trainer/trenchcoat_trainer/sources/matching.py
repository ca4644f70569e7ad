"""Which files of a listing a pattern means: text, each once, in an order that no listing decides."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.formats import PACKINGS, SUFFIXES, suffix_of
from trenchcoat_trainer.store import FolderStore, Readable
from trenchcoat_trainer.store.places import WILDCARD, literal_folder

logger = logging.getLogger(__name__)

BESIDE_TEXT = {
    "authors",
    "changelog",
    "contributing",
    "copying",
    "copyright",
    "licence",
    "license",
    "notice",
    "readme",
}
"""Names, without what follows the first dot, of plain text that tells of the text beside it."""
HIDDEN = (".", "_")
"""What names begin with that programs keep for themselves, such as .ipynb_checkpoints or _delta_log."""


def match_text(source: str, place: Readable, pattern: str) -> dict[str, int]:
    """Sizes of the text files that a pattern means, by path and in its order.

    A pattern without wildcards names a file, or a folder of which all text files are taken. With wildcards it
    names files, and where it ends in the ending of a text file also folders of such names, as Spark makes
    them. Files whose names, or whose folders' below the pattern's own, begin with . or _ are left out, and so
    are notes such as README.txt; naming them takes them.

    Raises:
        BadInputError: no file matches; one that does is no text, is a link that leads nowhere, or seems to be
            there twice.
    """
    literal = WILDCARD.split(pattern, maxsplit=1)[0]
    sizes = {entry.path: entry.size for entry in place.list(literal) if not entry.path.endswith("/")}
    if pattern in sizes:
        matched, left_out = [pattern], []
    else:
        everything = sorted(_matches(source, pattern, literal, sizes))
        left_out = [path for path in everything if _is_beside_text(path, pattern, literal)]
        matched = [path for path in everything if path not in set(left_out)]
    if left_out:
        logger.info("%d files of %s are no text and left out, such as %s", len(left_out), source, left_out[0])
    if any("/_delta_log/" in f"/{path}" for path in left_out):
        logger.warning(
            "%s is a Delta table, and all its files are read, those of former versions too: vacuum it", source
        )
    if not matched:
        raise BadInputError(
            f"spec.data.source {source} matches no text file: correct it, or put the text there"
        )
    for path in matched:
        if suffix_of(path) is None:
            raise BadInputError(
                f"spec.data.source {source} matches {path}, whose name ends in none of "
                f"{', '.join(SUFFIXES)}: narrow the pattern or rename the file"
            )
    if isinstance(place, FolderStore):
        matched = list(_each_once(source, place.root, matched))
    _refuse_copies(source, matched)
    return {path: sizes[path] for path in matched}


def _matches(source: str, pattern: str, literal: str, listed: Iterable[str]) -> Iterator[str]:
    if literal == pattern:
        folder = pattern.rstrip("/") + "/" if pattern else ""
        yield from (path for path in listed if path.startswith(folder) and suffix_of(path) is not None)
        return
    try:
        wanted = re.compile(_regex(pattern))
    except re.error as error:
        raise BadInputError(
            f"spec.data.source {source} is no pattern ({error}): mend what stands between [ and ]"
        ) from error
    folders = suffix_of(pattern) is not None
    for path in listed:
        if wanted.fullmatch(path):
            yield path
        elif folders and suffix_of(path) is not None:
            parts = path.split("/")
            if any(wanted.fullmatch("/".join(parts[:count])) for count in range(1, len(parts))):
                yield path


def _is_beside_text(path: str, pattern: str, literal: str) -> bool:
    top = literal_folder(pattern) if literal != pattern else pattern.rstrip("/") + "/"
    named = pattern[len(top) :].split("/")
    hidden = tuple(mark for mark in HIDDEN if not any(part.startswith(mark) for part in named))
    parts = path[len(top) :].split("/")
    if hidden and any(part.startswith(hidden) for part in parts):
        return True
    stem = parts[-1].partition(".")[0].lower()
    is_named = named[-1].lower().startswith(stem)
    return stem in BESIDE_TEXT and ".txt" in (suffix_of(path) or "") and not is_named


def _each_once(source: str, root: Path, paths: list[str]) -> Iterator[str]:
    """Leave out what a link leads to that is read already.

    Raises:
        BadInputError: a link leads nowhere.
    """
    seen: dict[str, str] = {}
    for path in paths:
        if not os.path.exists(root / path):
            raise BadInputError(
                f"spec.data.source {source}: {root / path} is a link that leads nowhere: mend or remove it"
            )
        real = os.path.realpath(root / path)
        if real in seen:
            logger.info("%s of %s is the same file as %s and left out", path, source, seen[real])
            continue
        seen[real] = path
        yield path


def _refuse_copies(source: str, paths: list[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        packing = next(packing for packing in PACKINGS if path.lower().endswith(packing))
        other = seen.setdefault(path[: len(path) - len(packing)].lower(), path)
        if other != path:
            raise BadInputError(
                f"spec.data.source {source} matches {other} and {path}, which seem to be the same text "
                "twice: narrow the pattern, or rename one"
            )


def _regex(pattern: str) -> str:
    """A glob as a regular expression: * and ? stay within a folder, ** crosses folders."""
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|[^*?]", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "(?s:" + "".join(special.get(part) or _set_or_literal(part) for part in parts) + ")"


def _set_or_literal(part: str) -> str:
    if len(part) > 1 and part.startswith("["):
        return "[^" + part[2:] if part.startswith("[!") else part
    return re.escape(part)
