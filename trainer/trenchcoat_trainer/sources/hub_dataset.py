"""A data set of the Hugging Face hub, streamed: nothing of it is kept on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from trenchcoat_api.constants import ENV_HF_DATA_TOKEN, ENV_HF_TOKEN
from trenchcoat_api.spec import Data

from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.sources.formats import check_text
from trenchcoat_trainer.store.credentials import read_secret
from trenchcoat_trainer.store.hub import HttpError

if TYPE_CHECKING:
    from datasets import IterableDataset


class HubDataset:
    """One split of a data set; a part is one of the files that it is stored in."""

    def __init__(self, repository: str, data: Data, version: str | None = None) -> None:
        """Fix the revision to a commit, so that a push in the meantime changes nothing.

        Args:
            repository: OWNER/NAME.
            data: which configuration, split, revision and field.
            version: the commit that an earlier attempt has read.

        Raises:
            BadInputError: there is no such data set, configuration, split or field, or no access to it.
        """
        self._repository = repository
        self._data = data
        token = read_secret(ENV_HF_DATA_TOKEN) or read_secret(ENV_HF_TOKEN)
        with self._errors():
            if version is None:
                info = HfApi(token=token).dataset_info(repository, revision=data.revision)
                version = info.sha or data.revision
            self.version: str | None = version
            self._rows: IterableDataset = self._open(token, version)
            columns = self._rows.column_names
        if columns is not None and data.text_field not in columns:
            raise BadInputError(
                f"spec.data.source hf://datasets/{repository} has no field {data.text_field!r} (it has "
                f"{', '.join(columns)}): set spec.data.textField to the text's field"
            )

    @property
    def parts(self) -> int:
        """Number of files."""
        return int(self._rows.num_shards)

    def part(self, index: int) -> Iterator[str]:
        """Every document of a part, in order; empty ones are left out."""
        field = self._data.text_field
        place = f"spec.data.source hf://datasets/{self._repository}, file {index} of split {self._data.split}"
        rows = self._rows.shard(num_shards=self.parts, index=index)
        with self._errors():
            for number, row in enumerate(rows):
                if field not in row:
                    raise BadInputError(
                        f"{place}, record {number}, has no field {field!r}: set spec.data.textField to the "
                        "text's field"
                    )
                if text := check_text(row[field], field, f"{place}, record {number}"):
                    yield text

    def _open(self, token: str | None, version: str) -> "IterableDataset":
        import datasets

        datasets.disable_progress_bars()
        rows: Any = datasets.load_dataset(
            self._repository,
            self._data.config,
            split=self._data.split,
            revision=version,
            token=token,
            streaming=True,
        )
        return rows  # type: ignore[no-any-return]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from datasets.exceptions import DatasetNotFoundError

        name = f"spec.data.source hf://datasets/{self._repository}"
        try:
            yield
        except GatedRepoError as error:
            raise BadInputError(
                f"{name} is gated: ask for access on its page, and put a token that has it in the Secret of "
                "spec.data.tokenSecretRef"
            ) from error
        except RevisionNotFoundError as error:
            raise BadInputError(
                f"spec.data.revision {self._data.revision!r} is not in hf://datasets/{self._repository}: "
                "name a branch, tag or commit"
            ) from error
        except (RepositoryNotFoundError, DatasetNotFoundError) as error:
            raise BadInputError(
                f"{name} is not on the hub, or private: correct the name, or give a token with "
                "spec.data.tokenSecretRef"
            ) from error
        except (HttpError, OSError) as error:
            raise StageError(f"the hub failed for {name}: {error}; it is tried again") from error
        except StageError:
            raise  # what this has found
        except Exception as error:
            # The library says which configurations or splits there are, or what it cannot read.
            if "scripts are no longer supported" in str(error):
                raise BadInputError(
                    f"{name} is a script, which is never run: name a data set of files, or set "
                    "spec.data.revision to refs/convert/parquet, where the hub has made files of it"
                ) from error
            raise BadInputError(
                f"{name}, configuration {self._data.config!r}, split {self._data.split!r}, cannot be read "
                f"({' '.join(str(error).split())}): correct spec.data"
            ) from error
