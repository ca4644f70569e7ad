"""A model repository of the Hugging Face hub, read by byte ranges without a local copy."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from trenchcoat_api.constants import ENV_HF_TOKEN

from trenchcoat_trainer.errors import BadInputError, NotFoundError, StageError
from trenchcoat_trainer.store.base import Entry
from trenchcoat_trainer.store.credentials import read_secret

# Each piece is a request of its own.
CHUNK_BYTES = 16 * 1024 * 1024

# The HTTP client below the hub's library changes with its version; this is whichever's base class of errors.
HttpError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubRepository:
    """The files of one revision of a model repository."""

    def __init__(self, repository: str, revision: str, endpoint: str | None = None) -> None:
        """Fix the revision to a commit, so that a push in the meantime changes nothing.

        Raises:
            BadInputError: there is no such repository or revision, or the token has no access to it.
        """
        self.name = f"hf://{repository}"
        self._repository = repository
        token = read_secret(ENV_HF_TOKEN)
        self._api = HfApi(endpoint=endpoint, token=token)
        self._files = HfFileSystem(endpoint=endpoint, token=token)
        self._revision = revision
        with self._errors(""):
            self._revision = self._api.model_info(repository, revision=revision).sha or revision

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all that follow."""
        return b"".join(self.stream(path, offset, length))

    def stream(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield what `read` would return in pieces of at most CHUNK_BYTES."""
        with self._errors(path), self._files.open(self._path(path), "rb", cache_type="none") as source:
            end = source.size if length is None else min(source.size, offset + length)
            source.seek(offset)
            while (left := end - source.tell()) > 0:
                yield source.read(min(CHUNK_BYTES, left))

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        with self._errors(path):
            return int(self._files.info(self._path(path))["size"])

    def exists(self, path: str) -> bool:
        """Whether there is a file of this name."""
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files whose path begins with `prefix`, in order of path."""
        with self._errors(prefix):
            items = list(self._api.list_repo_tree(self._repository, recursive=True, revision=self._revision))
        found = [Entry(item.path, item.size) for item in items if isinstance(item, RepoFile)]
        yield from sorted(
            (item for item in found if item.path.startswith(prefix)), key=lambda item: item.path
        )

    def _path(self, path: str) -> str:
        return f"{self._repository}@{self._revision}/{path}"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except GatedRepoError as error:
            raise BadInputError(
                f"spec.model.source {self.name} is gated: ask for access on its page, and put a token that "
                "has it in the Secret of spec.model.tokenSecretRef"
            ) from error
        except RevisionNotFoundError as error:
            raise BadInputError(
                f"spec.model.revision {self._revision!r} is not in {self.name}: name a branch, tag or commit"
            ) from error
        except RepositoryNotFoundError as error:
            raise BadInputError(
                f"spec.model.source {self.name} is not on the hub, or private: correct the name, or give a "
                "token with spec.model.tokenSecretRef"
            ) from error
        except FileNotFoundError as error:
            raise NotFoundError(path, self.name) from error
        except (HttpError, OSError) as error:
            raise StageError(f"the hub failed for {self.name}/{path}: {error}; it is tried again") from error
