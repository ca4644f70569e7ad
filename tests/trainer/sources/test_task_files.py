"""Files of tasks: brought with the data that they name; code and what is remote are refused."""

import json
from pathlib import Path

import pytest
import yaml
from trenchcoat_api.spec import Tasks
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources.task_files import fetch_tasks, find_task_files
from trenchcoat_trainer.store import FolderStore

TASK = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl", "train": ["more/a.jsonl", "more/b.jsonl"]}},
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tasks"
    (folder / "deep" / "more").mkdir(parents=True)
    (folder / "deep" / "colours.yaml").write_text(yaml.safe_dump(TASK))
    (folder / "group.yml").write_text("group: all\ntask: [colours]\n")
    for name in ("deep/rows.jsonl", "deep/more/a.jsonl", "deep/more/b.jsonl"):
        (folder / name).write_text(json.dumps({"name": name}) + "\n")
    (folder / "utils.py").write_text("raise SystemExit\n")
    return folder


@pytest.fixture
def fetch(folder, tmp_path):
    def fetched():
        target = tmp_path / "target"
        fetch_tasks(Tasks(source=folder.as_uri(), names=["all"]), FolderStore(tmp_path), target)
        return target

    return fetched


def change(folder, **fields):
    (folder / "deep" / "colours.yaml").write_text(yaml.safe_dump(TASK | fields))


def test_data_is_found_from_the_task_that_names_it(fetch):
    target = fetch()
    task = yaml.safe_load((target / "deep" / "colours.yaml").read_text())
    files = task["dataset_kwargs"]["data_files"]
    named = [files["test"], *files["train"]]
    assert [json.loads(Path(file).read_text())["name"] for file in named] == [
        "deep/rows.jsonl",
        "deep/more/a.jsonl",
        "deep/more/b.jsonl",
    ]
    assert task["dataset_kwargs"]["cache_dir"].startswith(str(target))
    assert yaml.safe_load((target / "group.yml").read_text()) == {"group": "all", "task": ["colours"]}
    assert not (target / "utils.py").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_path": "owner/name"}, "dataset_path owner/name, but nothing is downloaded"),
        ({"dataset_kwargs": {}}, "names no files"),
        ({"dataset_kwargs": {"data_files": "none.jsonl"}}, r"the file none\.jsonl, which is not there"),
        ({"dataset_kwargs": {"data_files": "../../../secret.jsonl"}}, "which is not there"),
        ({"dataset_kwargs": {"data_files": "https://example.org/a.jsonl"}}, "which is not there"),
    ],
)
def test_what_is_not_among_the_files_is_refused(fetch, folder, fields, message):
    (folder.parent.parent / "secret.jsonl").write_text("{}\n")
    change(folder, **fields)
    with pytest.raises(BadInputError, match=rf"tasks\.source .*deep/colours\.yaml .*{message}"):
        fetch()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("doc_to_text: !function utils.text\n", "code is not run"),
        ("doc_to_text: !!python/name:os.system\n", "code is not run"),
        ("task: [\n", "is no YAML"),
        ("- task\n", "is no task"),
    ],
)
def test_a_file_that_is_no_plain_task_is_refused(fetch, folder, text, message):
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(BadInputError, match=rf"bad\.yaml .*{message}"):
        fetch()


def test_a_folder_without_tasks_is_told_before_anything_runs(tmp_path):
    with pytest.raises(BadInputError, match=r"^spec\.evaluate\.tasks\.source .* has no YAML file"):
        find_task_files(Tasks(source=(tmp_path / "empty").as_uri(), names=["a"]), FolderStore(tmp_path))
