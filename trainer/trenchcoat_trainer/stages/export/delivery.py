"""The export in a repository of the Hugging Face hub: large files one by one, then one commit of all."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars
from trenchcoat_api.constants import ENV_HF_EXPORT_TOKEN, ENV_HF_TOKEN

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.store import Readable
from trenchcoat_trainer.store.credentials import read_secret
from trenchcoat_trainer.store.hub import HttpError

RECEIPT = "delivery.json"
"""Object of an export artifact: where it was uploaded to, and the commit."""
BUFFER_BYTES = 16 * 1024 * 1024
_REFUSED = (401, 403)


class StoredFile(io.RawIOBase):
    """An object of a store as a file to read from anywhere; none of it stays in memory."""

    def __init__(self, store: Readable, path: str, size: int) -> None:
        self._store, self._path, self._size = store, path, size
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, counted from the start, from here or from the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:
        """Read what comes next."""
        length = min(len(buffer), max(0, self._size - self._position))
        data = self._store.read(self._path, self._position, length) if length else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def deliver(context: StageContext) -> None:
    """Upload all objects of the artifact that were written to spec.export.destination.

    What is there already, of an attempt that was stopped too, is not sent again: the hub is asked for it by
    checksum. Other safetensors files of the repository are deleted, which would be loaded beside these.

    Raises:
        BadInputError: the hub refuses the token, or the repository cannot be made.
        StageError: the hub cannot be reached, or fails.
    """
    destination = context.spec.export.destination
    if destination is None:
        raise ValueError("the export has no destination")
    repository = destination.removeprefix("hf://")
    token = read_secret(ENV_HF_EXPORT_TOKEN) or read_secret(ENV_HF_TOKEN)
    api = HfApi(token=token or False)
    disable_progress_bars()
    objects = [item for item in context.writer.written() if item.path != RECEIPT]
    additions = []
    with _errors(destination):
        api.create_repo(repository, private=context.spec.export.private, exist_ok=True)
        for number, item in enumerate(objects):
            context.stop.check()
            file = StoredFile(context.store, context.artifact.prefix + item.path, item.size)
            addition = CommitOperationAdd(item.path, io.BufferedReader(file, BUFFER_BYTES))
            api.preupload_lfs_files(repository, [addition], num_threads=1)
            additions.append(addition)
            context.progress.update("upload", number + 1, len(objects), fraction=(number + 1) / len(objects))
        ours = {item.path for item in objects}
        others = [name for name in api.list_repo_files(repository) if name not in ours and _is_weights(name)]
        deletions = [CommitOperationDelete(name) for name in others]
        message = f"Student of {context.spec.model.source.removeprefix('hf://')}"
        commit = api.create_commit(repository, [*additions, *deletions], commit_message=message)
    receipt = {"destination": destination, "commit": commit.oid}
    context.writer.write(RECEIPT, json.dumps(receipt, indent=1).encode())


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith((".safetensors", ".safetensors.index.json"))


@contextmanager
def _errors(destination: str) -> Iterator[None]:
    """Turn the hub's failures into those of a stage."""
    try:
        yield
    except RepositoryNotFoundError as error:
        _refuse(destination, error)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in _REFUSED:
            _refuse(destination, error)
        raise StageError(f"the hub failed for {destination}: {error}; it is tried again") from error
    except (HttpError, OSError, RuntimeError, ValueError) as error:  # the latter two for what it answered
        raise StageError(f"the upload to {destination} failed: {error}; it is tried again") from error


def _refuse(destination: str, error: Exception) -> NoReturn:
    raise BadInputError(
        f"the hub refuses to write to spec.export.destination {destination}: put a token that may, into the "
        "Secret of spec.export.tokenSecretRef"
    ) from error
