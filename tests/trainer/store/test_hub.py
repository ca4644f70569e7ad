"""The hub as a source, against a small server that answers as the hub does."""

import http.server
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from trenchcoat_trainer.errors import BadInputError, NotFoundError, StageError
from trenchcoat_trainer.store.hub import HubRepository

from tests.trainer.helpers.hub_server import HubHandler

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(HubHandler):
    """Serves one public repository, me/llama, one gated one, me/gated, and one that fails, me/broken."""

    folder: Path
    ranges: list[str]
    tokens: list[str | None]
    bytes_from: str
    """Another host that file contents are sent from, as the hub's network does; none if empty."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.tokens.append(self.headers.get("Authorization"))
        if path.startswith(("/api/models/me/gated", "/me/gated")):
            self._error(403, "GatedRepo")
        elif path.startswith("/api/models/me/broken"):
            self._error(500, "Internal")
        elif match := re.match(r"/api/models/me/llama/(?:revision|tree|paths-info)/([^/]+)", path):
            if match[1] not in ("main", COMMIT):
                self._error(404, "RevisionNotFound")
            elif "/tree/" in path:
                self._json(self._files())
            else:
                self._json({"id": "me/llama", "sha": COMMIT, "siblings": []})
        elif path.startswith(f"/me/llama/resolve/{COMMIT}/") and self.bytes_from:
            self._send(302, b"", {"Location": self.bytes_from + path, "X-Repo-Commit": COMMIT, "ETag": '"0"'})
        elif path.startswith(f"/me/llama/resolve/{COMMIT}/"):
            self._file(self.folder / path.rpartition("/")[2])
        else:
            self._error(
                404 if "llama" in path else 401, "EntryNotFound" if "llama" in path else "RepoNotFound"
            )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        names = self._asked_for()
        self._json([item for item in self._files() if item["path"] in names])

    def _files(self) -> list[dict[str, object]]:
        files = sorted(self.folder.iterdir())
        return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]

    def _file(self, file: Path) -> None:
        if not file.exists():
            self._error(404, "EntryNotFound")
            return
        data = file.read_bytes()
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            self.ranges.append(wanted)
            self._send(
                206, data[int(first) : int(last) + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            )
        else:
            self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": '"0"'})


@contextmanager
def serving(folder: Path, bytes_from: str = "") -> Iterator[http.server.ThreadingHTTPServer]:
    known = {"folder": folder, "ranges": [], "tokens": [], "bytes_from": bytes_from}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHub", (Hub,), known))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return tmp_path


@pytest.fixture
def hub(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    with serving(folder) as server:
        yield server


def open_repository(
    hub: http.server.ThreadingHTTPServer, name: str = "me/llama", revision: str = "main"
) -> HubRepository:
    return HubRepository(name, revision, endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_files_are_listed_and_read_by_ranges(hub) -> None:
    repository = open_repository(hub)
    assert [(entry.path, entry.size) for entry in repository.list("")] == [
        ("config.json", 23),
        ("model.safetensors", 256_000),
    ]
    assert repository.read("config.json") == b'{"model_type": "llama"}'
    assert repository.size("model.safetensors") == 256_000
    assert repository.read("model.safetensors", 254, 4) == b"\xfe\xff\x00\x01"
    assert hub.RequestHandlerClass.ranges[-1] == "bytes=254-257"


def test_missing_files_are_named(hub) -> None:
    repository = open_repository(hub)
    assert not repository.exists("tokenizer.json")
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        repository.read("tokenizer.json")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("me/gated", "main", r"me/gated is gated: .* spec\.model\.tokenSecretRef"),
        ("me/nothing", "main", "is not on the hub, or private"),
        ("me/llama", "v9", r"spec\.model\.revision 'v9' is not in hf://me/llama"),
    ],
)
def test_what_cannot_be_had_is_told(hub, name: str, revision: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        open_repository(hub, name, revision)


TOKEN = "hf_0123456789abcdefghijklmnopqrstuvwx"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def test_the_token_goes_to_the_hub_alone(folder: Path, token: str) -> None:
    """Contents come from another host, whose address is a redirection."""
    with serving(folder) as network, serving(folder, f"http://localhost:{network.server_port}") as hub:
        assert open_repository(hub).read("config.json") == b'{"model_type": "llama"}'
        assert set(hub.RequestHandlerClass.tokens) == {f"Bearer {token}"}
        assert set(network.RequestHandlerClass.tokens) == {None}


@pytest.mark.parametrize("name", ["me/gated", "me/nothing", "me/broken"])
def test_the_token_is_in_no_message(hub, token: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(StageError) as failure:
        open_repository(hub, name)
    causes = [failure.value]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    assert len(causes) > 1
    assert not [text for text in (*map(str, causes), *map(repr, causes), caplog.text) if token in text]
