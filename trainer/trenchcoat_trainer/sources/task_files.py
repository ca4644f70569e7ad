"""The files of spec.evaluate.tasks, brought to a local folder and checked: data, no code, nothing remote."""

from pathlib import Path
from typing import Any

import yaml
from trenchcoat_api.spec import Tasks

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.store import Readable, Store
from trenchcoat_trainer.store.places import open_place

FIELD = "spec.evaluate.tasks.source"
YAML = (".yaml", ".yml")
DATA = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz", ".zst")
FORMATS = ("json", "csv", "parquet", "text")
"""What a task may have as dataset_path: the library's own readers of files."""


def find_task_files(asked: Tasks, store: Store) -> tuple[Readable, str, list[str]]:
    """Return the place of the tasks, their folder in it, and the paths below it of YAML and data files.

    Raises:
        BadInputError: there is no YAML file.
        StoreError: its store cannot be used.
    """
    place, path = open_place(FIELD, asked.source, store)
    folder = path.rstrip("/") + "/"
    names = [entry.path.removeprefix(folder) for entry in place.list(folder)]
    wanted = [name for name in names if name.endswith(YAML + DATA) and ".." not in name.split("/")]
    if not any(name.endswith(YAML) for name in wanted):
        raise BadInputError(
            f"{FIELD} {asked.source} has no YAML file of a task: correct it, or put the tasks there"
        )
    return place, folder, wanted


def fetch_tasks(asked: Tasks, store: Store, target: Path) -> None:
    """Bring the tasks to the folder `target`, so that whoever reads them there finds their data, too.

    Data files that a task names stand as seen from its YAML file.

    Raises:
        BadInputError: a YAML file cannot be read, names code, or data that is not among the files.
        StoreError: the store cannot be used.
    """
    place, folder, names = find_task_files(asked, store)
    for name in names:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            stream.writelines(place.stream(folder + name))
    for name in names:
        if name.endswith(YAML):
            file = target / name
            task = _read(f"{FIELD} {asked.source}: {name}", file)
            _localise(f"{FIELD} {asked.source}: {name}", task, file.parent, target)
            file.write_text(yaml.safe_dump(task, sort_keys=False))


def _read(name: str, file: Path) -> dict[str, Any]:
    try:
        task = yaml.safe_load(file.read_bytes())
    except yaml.constructor.ConstructorError as error:
        raise BadInputError(
            f"{name} has {error.problem}: code is not run from a task's files; write the task without it"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{name} is no YAML ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(task, dict):
        raise BadInputError(f"{name} is no task: a YAML file there holds the fields of one task or group")
    return task


def _localise(name: str, task: dict[str, Any], folder: Path, root: Path) -> None:
    """Make paths of data absolute; whatever is read into a cache goes to `root`."""
    path, options = task.get("dataset_path"), task.get("dataset_kwargs")
    if path is None and options is None:
        return  # a group, or what others include
    if path is not None and path not in FORMATS:
        raise BadInputError(
            f"{name} has dataset_path {path}, but nothing is downloaded: put the data beside it, set "
            f"dataset_path to one of {', '.join(FORMATS)}, and name the files in dataset_kwargs.data_files"
        )
    if not isinstance(options, dict) or "data_files" not in options:
        raise BadInputError(f"{name} names no files: give them in dataset_kwargs.data_files")
    options["data_files"] = _located(name, options["data_files"], folder, root)
    options["cache_dir"] = str(root / ".cache")


def _located(name: str, files: Any, folder: Path, root: Path) -> Any:
    if isinstance(files, dict):
        return {split: _located(name, own, folder, root) for split, own in files.items()}
    if isinstance(files, list):
        return [_located(name, own, folder, root) for own in files]
    found = (folder / str(files)).resolve()
    if not found.is_relative_to(root.resolve()) or not found.is_file():
        raise BadInputError(
            f"{name} names the file {files}, which is not there: put it beside the task, with an ending of "
            f"{', '.join(DATA)}"
        )
    return str(found)
