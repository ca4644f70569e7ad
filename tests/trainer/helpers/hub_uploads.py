"""A server that takes uploads as the Hugging Face hub does: repositories, large files by parts, commits."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import yaml

from tests.trainer.helpers.hub_server import HubHandler

PART_BYTES = 100_000
"""Larger files are asked for in parts of this."""


@dataclass
class Hub:
    """What the server knows; the network that takes large files' bytes has another port, as the hub's has.

    Attributes:
        token: the only one that may write.
        repositories: files of each by name, and whether it is private.
        blobs: large files by their SHA-256.
        parts: of files that are being sent, by SHA-256 and number.
        tokens: what every request of the hub's own, and of its network, had in Authorization.
        received: bytes that large files' requests brought.
        fails: how many of the next parts the network refuses for good.
    """

    token: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    network_tokens: list[str | None] = field(default_factory=list)
    commits: list[dict[str, object]] = field(default_factory=list)
    received: int = 0
    fails: int = 0
    network: str = ""
    url: str = ""


class Network(HubHandler):
    """Takes the bytes of large files, by addresses that are proof enough."""

    hub: Hub

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.network_tokens.append(self.headers.get("Authorization"))
        if self.hub.fails:
            self.hub.fails -= 1
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>", {})
            return
        _, sha, number = self.path.split("/")
        self.hub.received += len(data)
        if int(number) == 0:
            self.hub.blobs[sha] = data
        else:
            self.hub.parts[sha, int(number)] = data
        self._send(200, b"", {"ETag": hashlib.md5(data, usedforsecurity=False).hexdigest()})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class Uploads(Network):
    """The hub itself."""

    def do_GET(self) -> None:
        path = self._seen()
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main|/tree/main|)", path)
        files = self.hub.repositories.get(match[1]) if match else None
        if match is None or files is None:
            self._error(404, "RepoNotFound")
        elif "/tree/" in match[2]:
            sizes = {name: len(data) for name, data in files.items()}
            self._json([{"type": "file", "path": n, "size": sizes[n], "oid": "0" * 40} for n in sizes])
        else:
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": match[1], "sha": f"{len(self.hub.commits):040x}", "siblings": siblings})

    def do_POST(self) -> None:
        path, body = self._seen(), self._body()
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and "/complete/" not in path:
            self._send(401, json.dumps({"error": "Invalid credentials"}).encode(), {})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            faults = [] if isinstance(header.get("tags"), list) else [{"message": "tags is no list"}]
            self._send(400 if faults else 200, json.dumps({"errors": faults, "warnings": []}).encode(), {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            self._preupload(json.loads(body))
        elif re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/complete/(\w+)", path):
            numbers = sorted(part["partNumber"] for part in json.loads(body)["parts"])
            self.hub.blobs[match[1]] = b"".join(self.hub.parts.pop((match[1], number)) for number in numbers)
            self._json({})
        elif path == "/verify":
            wanted = json.loads(body)
            blob = self.hub.blobs.get(wanted["oid"], b"")
            is_whole = hashlib.sha256(blob).hexdigest() == wanted["oid"] and len(blob) == wanted["size"]
            self._send(200 if is_whole else 422, b"{}", {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        else:
            self._error(404, "RepoNotFound")

    def _seen(self) -> str:
        self.hub.tokens.append(self.headers.get("Authorization"))
        return unquote(urlsplit(self.path).path)

    def _create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
        if name in self.hub.repositories:
            self._send(409, url, {})
            return
        self.hub.repositories[name] = {".gitattributes": b""}
        self.hub.private[name] = wanted["visibility"] == "private"
        self._send(200, url, {})

    def _preupload(self, wanted: dict[str, list[dict[str, object]]]) -> None:
        def mode(name: str) -> str:
            return "lfs" if name.endswith(".safetensors") else "regular"

        names = [str(item["path"]) for item in wanted["files"]]
        files = [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in names]
        self._json({"files": files})

    def _batch(self, wanted: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for item in wanted["objects"]:
            sha, size = str(item["oid"]), int(str(item["size"]))
            found: dict[str, object] = {"oid": sha, "size": size}
            if sha not in self.hub.blobs:
                upload: dict[str, object] = {"href": f"{self.hub.network}/{sha}/0"}
                if size > PART_BYTES:
                    count = -(-size // PART_BYTES)
                    header = {str(n): f"{self.hub.network}/{sha}/{n}" for n in range(1, count + 1)}
                    header["chunk_size"] = str(PART_BYTES)
                    upload = {"href": f"{self.hub.url}/complete/{sha}", "header": header}
                found["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(found)
        self._json({"transfer": "multipart", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits.append(lines[0]["value"])
        oid = f"{len(self.hub.commits):040x}"
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})


@contextmanager
def hub_for_uploads(token: str) -> Iterator[Hub]:
    """Run the hub and its network."""
    hub = Hub(token)
    servers = [
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (kind,), {"hub": hub}))
        for kind in (Uploads, Network)
    ]
    hub.url, hub.network = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
