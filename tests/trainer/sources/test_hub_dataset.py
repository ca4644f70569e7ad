"""A data set of the hub, loaded by the `datasets` library from a small server that answers as the hub does.

The library reads the hub's address when it is imported, so every test reads in a process of its own.
"""

import gzip
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.forwarding_proxy import forwarding
from tests.trainer.helpers.hub_server import HubHandler
from tests.trainer.stages.cria.cria_training import make_spec

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits: `main` is at the second, which has one file more."""
DOCUMENTS = [f"document {number}: " + "text " * (number % 7 + 1) for number in range(50)]

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
  - split: test
    path: data/test.parquet
- config_name: bodies
  data_files: bodies/*.parquet
---
"""

READ = """
import json, os, sys, urllib.request
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.sources.text import open_text
for name, case in json.loads(sys.argv[1]).items():
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/case/{name}").read()
    os.environ["TRENCHCOAT_HF_DATA_TOKEN"] = case["token"]
    try:
        text = open_text(TrenchcoatSpec.model_validate(case["spec"]), None, case["version"])
        found = [list(text.part(part)) for part in range(case["start"], text.parts)]
        print(json.dumps({"parts": found, "version": text.version}))
    except StageError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


class Hub(HubHandler):
    """Serves the data sets me/text and me/lines, files below `folder`/NAME/COMMIT, and me/gated."""

    folder: Path
    requests: dict[str, list[tuple[str, str | None]]]
    case = ""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/case/"):
            type(self).case = path.rpartition("/")[2]
            self.requests[self.case] = []
            self._json({})
            return
        self.requests[self.case].append((path, self.headers.get("Authorization")))
        if "/me/gated" in path:
            self._gated(path)
        elif match := re.match(r"/api/datasets/me/(text|lines|script)/(revision|tree)/([^/]+)/?(.*)", path):
            name, kind, revision, prefix = match.groups()
            commit = {"main": SECOND}.get(revision, revision)
            if not (self.folder / name / commit).is_dir():
                self._error(404, "RevisionNotFound")
            elif kind == "tree":
                self._json([item for item in self._files(name, commit) if item["path"].startswith(prefix)])
            else:
                self._json({"id": f"me/{name}", "sha": commit, "private": False, "tags": [], "siblings": []})
        elif match := re.match(r"/api/datasets/me/(text|lines|script)$", path):
            self._json({"id": f"me/{match[1]}", "sha": SECOND, "private": False, "tags": [], "siblings": []})
        elif match := re.match(r"/datasets/me/(text|lines|script)/resolve/([^/]+)/(.*)", path):
            self._file(match[1], {"main": SECOND}.get(match[2], match[2]), match[3])
        else:
            self._error(401, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        names = self._asked_for()
        match = re.match(r"/api/datasets/me/([^/]+)/paths-info/([^/]+)", unquote(urlsplit(self.path).path))
        assert match is not None
        self._json([item for item in self._files(match[1], match[2]) if item["path"] in names])

    def _gated(self, path: str) -> None:
        if self.headers.get("Authorization") != "Bearer let-me-in" or "resolve" in path:
            self._error(403, "GatedRepo")
        else:
            self._error(404, "EntryNotFound")

    def _files(self, name: str, commit: str) -> list[dict[str, Any]]:
        top = self.folder / name / commit
        found = []
        for file in sorted(top.rglob("*")):
            item = {"path": str(file.relative_to(top)), "oid": "0" * 40, "size": 0, "type": "directory"}
            found.append(item | {"type": "file", "size": file.stat().st_size} if file.is_file() else item)
        return found

    def _file(self, name: str, commit: str, path: str) -> None:
        file = self.folder / name / commit / path
        if not file.is_file():
            self._error(404, "EntryNotFound")
            return
        data, headers = file.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{commit[:1]}{path}"'}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        end = int(first) + len(part) - 1
        self._send(206, part, headers | {"Content-Range": f"bytes {first}-{end}/{len(data)}"})


def make_commit(folder: Path, files: int) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "bodies").mkdir()
    (folder / "README.md").write_text(CARD)
    for number in range(files):
        rows = pa.table({"text": DOCUMENTS[number::files], "id": list(range(len(DOCUMENTS[number::files])))})
        pq.write_table(rows, folder / f"data/train-{number:05d}.parquet", row_group_size=5)
    pq.write_table(pa.table({"text": ["held out by its maker"]}), folder / "data/test.parquet")
    pq.write_table(pa.table({"body": DOCUMENTS[:10]}), folder / "bodies/a.parquet")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[http.server.ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("hub")
    make_commit(folder / "text" / FIRST, 2)
    make_commit(folder / "text" / SECOND, 3)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:10])
    (folder / "lines" / SECOND).mkdir(parents=True)
    (folder / "script" / SECOND).mkdir(parents=True)
    (folder / "script" / SECOND / "script.py").write_text("import datasets")
    (folder / "lines" / SECOND / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    handler = type("BoundHub", (Hub,), {"folder": folder, "requests": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


CASES: dict[str, dict[str, Any]] = {
    "split": {},
    "version": {"version": FIRST, "start": 1},
    "test": {"split": "test"},
    "bodies": {"config": "bodies", "textField": "body", "revision": FIRST},
    "lines": {"name": "me/lines"},
    "token": {"token": "let-me-in"},
}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"name": "me/nothing"}, "is not on the hub, or private: .* spec.data.tokenSecretRef"),
    "gated": ({"name": "me/gated"}, "is gated: .* spec.data.tokenSecretRef"),
    "revision": ({"revision": "v9"}, r"spec.data.revision 'v9' is not in hf://datasets/me/text"),
    "dev": ({"split": "dev"}, "split 'dev', cannot be read"),
    "config": ({"config": "other"}, "configuration 'other', split 'train', cannot be read"),
    "body": ({"textField": "body"}, r"has no field 'body' \(it has .*text.*\): set spec.data.textField"),
    "script": ({"name": "me/script"}, "is a script, which is never run: .* refs/convert/parquet"),
    "id": ({"textField": "id"}, "field 'id' is no string"),
}


def case(
    name: str = "me/text", version: str | None = None, start: int = 0, token: str = "", **data: str
) -> dict[str, Any]:
    """What a process needs to read a data set: its spec, and what an earlier attempt has left."""
    spec = make_spec(data={"source": f"hf://datasets/{name}", "tokens": 1000, "sequenceLength": 100, **data})
    return {"spec": spec.model_dump(by_alias=True), "version": version, "start": start, "token": token}


def read(
    cases: dict[str, Any], hub: http.server.ThreadingHTTPServer, home: Path, **variables: str
) -> dict[str, Any]:
    """What a process with these variables reads."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **variables,
    }
    process = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(cases)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return dict(zip(cases, map(json.loads, process.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def results(hub: http.server.ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What reading gave in every case: parts and version, or an error."""
    cases = {name: case(**fields) for name, fields in CASES.items()}
    cases |= {name: case(**fields) for name, (fields, _) in FAULTS.items()}
    return read(cases, hub, tmp_path_factory.mktemp("home"))


pytestmark = pytest.mark.slow


def test_a_split_is_read_file_by_file(results, hub) -> None:
    assert results["split"]["parts"] == [DOCUMENTS[number::3] for number in range(3)]
    assert results["split"]["version"] == SECOND
    # Of the commit, whatever happens to main.
    asked = [path for path, _ in hub.RequestHandlerClass.requests["split"] if "parquet" in path]
    assert len(asked) >= 3
    assert all(SECOND in path for path in asked)


def test_an_earlier_attempts_commit_is_read_on_though_main_has_moved(results) -> None:
    assert results["version"]["parts"] == [DOCUMENTS[1::2]]


def test_another_configuration_split_field_and_revision(results) -> None:
    assert results["test"]["parts"] == [["held out by its maker"]]
    assert results["bodies"] == {"parts": [DOCUMENTS[:10]], "version": FIRST}


def test_jsonl_is_read_too(results) -> None:
    assert results["lines"]["parts"] == [DOCUMENTS[:10]]


def test_the_token_of_the_data_is_sent(results, hub) -> None:
    assert results["token"]["parts"] == results["split"]["parts"]
    assert {token for _, token in hub.RequestHandlerClass.requests["token"]} == {"Bearer let-me-in"}
    assert {token for _, token in hub.RequestHandlerClass.requests["split"]} == {None}


@pytest.mark.parametrize("name", list(FAULTS))
def test_what_cannot_be_had_is_told(results, name: str) -> None:
    assert re.search(FAULTS[name][1], results[name]["error"]), results[name]
    assert results[name]["kind"] == "BadInputError"


def test_through_a_proxy(hub, tmp_path: Path) -> None:
    with forwarding(login="me:word") as proxy:
        address = f"http://me:word@{proxy.address}"
        way = {"HTTP_PROXY": address, "http_proxy": address, "NO_PROXY": "", "no_proxy": ""}
        found = read({"split": case()}, hub, tmp_path, **way)
    assert found["split"]["parts"] == [DOCUMENTS[number::3] for number in range(3)]
    assert sum("parquet" in line for line in proxy.asked) >= 3
