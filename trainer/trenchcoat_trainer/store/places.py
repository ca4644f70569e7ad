"""Where a source of the spec lies: the place to read from, and the path within it."""

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.store.base import Readable, Store
from trenchcoat_trainer.store.folder import FolderStore

WILDCARD = re.compile(r"[*?\[]")


def open_place(field: str, source: str, store: Store) -> tuple[Readable, str]:
    """The place that an s3:// or file:// source lies in, and the path or pattern within it.

    Args:
        field: The source's field of the spec, for messages.
        source: As the spec has it; %20 and the like are decoded in file:// sources, as in any such URL.
        store: That of spec.store, for s3:// sources.

    Raises:
        BadInputError: it leads out of the place, or cannot be a path.
    """
    scheme, _, rest = source.partition("://")
    if scheme == "s3":
        bucket, _, path = rest.partition("/")
        _refuse_parents(field, source, rest)
        return store.in_bucket(bucket), path
    path = unquote(rest).lstrip("/")
    if "\0" in path:
        raise BadInputError(f"{field} {source} holds a NUL, which no path can: correct it")
    fixed = literal_folder(path)
    _refuse_parents(field, source, path[len(fixed) :])
    if ".." in fixed.split("/"):
        # As the system reads it: after a link, the parent is that of where it leads.
        fixed = posixpath.join(os.path.realpath(f"/{fixed}").lstrip("/"), "")
    return FolderStore(Path("/")), fixed + path[len(literal_folder(path)) :]


def literal_folder(pattern: str) -> str:
    """The folders that a pattern begins with, up to the first wildcard; empty, or ending in a slash."""
    folder, slash, _ = WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")
    return folder + slash


def _refuse_parents(field: str, source: str, path: str) -> None:
    if ".." in path.split("/"):
        raise BadInputError(f"{field} {source} has .. where it cannot be followed: write the path without it")
