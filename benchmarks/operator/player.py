"""The trainer's part, played: progress and manifests appear in the store as if stages computed something.

It watches pods, as the store would hear of them, and Trenchcoats, to count what changes in their statuses.
"""

import heapq
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import urllib3
from minio import Minio
from trenchcoat_api.artifacts import (
    Artifact,
    Artifacts,
    DataFacts,
    Facts,
    Manifest,
    ModelFacts,
    Progress,
    StoredObject,
)
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.results import Perplexity
from trenchcoat_api.stages import Stage

LAYERS = 126
MODEL = ModelFacts(
    layers=LAYERS,
    hidden_size=16384,
    heads=128,
    kv_heads=8,
    head_dim=128,
    intermediate_size=53248,
    vocab_size=128256,
    parameters=405_853_388_800,
)
DATA = DataFacts(
    documents=1000, sequences=19531, tokens=20_000_000, held_out_documents=20, held_out_sequences=400
)
OBJECTS = 50
"""Objects in each manifest."""


def manifest(artifact: Artifact, begun: datetime) -> Manifest:
    """What a stage's program would have written at its end."""
    facts = Facts(
        losses={"transfer": "0.10", "lora": "0.05"}, curve=[f"{1 / (1 + step):.4f}" for step in range(32)]
    )
    if artifact.stage is Stage.TOKENIZE:
        facts = Facts(model=MODEL, data=DATA)
    if artifact.stage is Stage.EVALUATE:
        names = ("teacher", "untrained", "transfer", "criaLora", "stitched")
        facts = Facts(perplexities=[Perplexity(name=name, perplexity="3.2") for name in names])
    now = datetime.now(UTC)
    return Manifest(
        stage=artifact.stage,
        cria=artifact.cria.index if artifact.cria else None,
        key=artifact.key,
        inputs=list(artifact.inputs),
        objects=[
            StoredObject(path=f"data-{n:05d}", size=33_554_432, sha256="0" * 64) for n in range(OBJECTS)
        ],
        facts=facts,
        started_at=begun,
        completed_at=now,
        seconds=(now - begun).total_seconds(),
    )


def progress(artifact: Artifact, share: float) -> Progress:
    """What a stage's program would have written on its way."""
    return Progress(
        stage=artifact.stage,
        cria=artifact.cria.index if artifact.cria else None,
        key=artifact.key,
        phase="transfer",
        step=int(share * 5000),
        steps=5000,
        fraction=share,
        losses={"transfer": f"{1 / (1 + 10 * share):.4f}"},
        curve=[f"{1 / (1 + step):.4f}" for step in range(int(share * 32))],
        eta_seconds=60 * (1 - share),
        updated_at=datetime.now(UTC),
    )


@dataclass(order=True)
class _Due:
    at: float
    do: Callable[[], None] = field(compare=False)


class Api:
    """Raw lists and watches of the API server."""

    def __init__(self, kubeconfig: dict[str, Any]) -> None:
        cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
        self._server = cluster["server"]
        self._pool = urllib3.PoolManager(
            maxsize=8,
            ca_certs=cluster["certificate-authority"],
            cert_file=user.get("client-certificate"),
            key_file=user.get("client-key"),
            headers={"Authorization": f"Bearer {user['token']}"} if "token" in user else None,
        )

    def get(self, path: str) -> dict[str, Any]:
        answer = self._pool.request("GET", self._server + path, timeout=60)
        if answer.status != 200:
            raise RuntimeError(f"GET {path}: {answer.status} {answer.data[:300]!r}")
        found: dict[str, Any] = answer.json()
        return found

    def watch(self, path: str, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """All changes from now on, one watch after another; an expired one begins with a list."""
        version = ""
        while not stop.is_set():
            if not version:
                version = self.get(path)["metadata"]["resourceVersion"]
            asked = f"watch=1&allowWatchBookmarks=true&timeoutSeconds=60&resourceVersion={version}"
            url = f"{self._server}{path}?{asked}"
            patience = urllib3.Timeout(connect=10, read=90)
            answer = self._pool.request("GET", url, preload_content=False, timeout=patience)
            try:
                for line in _lines(answer):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event
            except urllib3.exceptions.HTTPError:
                if not stop.is_set():
                    raise
            finally:
                answer.close()


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in answer.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)


class Player:
    """Plays all stage programs, and watches what becomes of it."""

    def __init__(self, api: Api, store: Minio, bucket: str, namespace: str, stage_seconds: float) -> None:
        self._api, self._store, self._bucket, self._namespace = api, store, bucket, namespace
        self._seconds = stage_seconds
        self._artifacts: dict[str, dict[str, Artifact]] = {}
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._due: list[_Due] = []
        self._played: set[str] = set()
        self._bound: dict[str, float] = {}
        self._puts = ThreadPoolExecutor(4)
        self._rows: dict[str, dict[str, str]] = {}
        self.transitions: Counter[str] = Counter()
        self.status_writes = 0
        self.done: dict[str, float] = {}
        self.running: dict[str, str] = {}
        """Stage of each running pod."""
        self.lags: list[float] = []
        """Seconds from a pod's being bound until it ran: kwok's part, which is not to be what is measured."""
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._pods, self._statuses, self._work)
        ]

    def expect(self, body: dict[str, Any]) -> None:
        """Learn which artifacts a Trenchcoat will ask for."""
        spec = Trenchcoat.from_object(body).spec
        all_of_them = Artifacts(spec).all(cria_ranges(LAYERS, spec.layers_per_cria))
        self._artifacts[body["metadata"]["name"]] = {item.name: item for item in all_of_them}

    def forget(self, name: str) -> None:
        """Drop what is known of a Trenchcoat."""
        self._artifacts.pop(name, None)
        self._rows.pop(name, None)
        self.done.pop(name, None)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._puts.shutdown(cancel_futures=True)

    def fault(self) -> str:
        return (
            ""
            if all(thread.is_alive() for thread in self._threads)
            else "a thread of the trainer's player ended"
        )

    def _pods(self) -> None:
        for event in self._api.watch(f"/api/v1/namespaces/{self._namespace}/pods", self._stop):
            pod = event["object"]
            name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
            if event["type"] == "DELETED":
                self._bound.pop(name, None)
                self.running.pop(name, None)
                self._played.discard(name)
                continue
            if pod["spec"].get("nodeName"):
                self._bound.setdefault(name, time.monotonic())
            if pod["status"].get("phase") != "Running":
                self.running.pop(name, None)
            elif name not in self._played:
                self._played.add(name)
                self.lags.append(time.monotonic() - self._bound[name])
                self.running[name] = labels["trenchcoat.dev/stage"]
                self._play(labels)

    def _play(self, labels: dict[str, str]) -> None:
        stage, cria = labels["trenchcoat.dev/stage"], labels.get("trenchcoat.dev/cria")
        known = self._artifacts.get(labels["trenchcoat.dev/name"])
        if known is None:
            return
        artifact = known[stage if cria is None else f"{stage}-{int(cria):02d}"]
        begun, now = datetime.now(UTC), time.monotonic()
        for share in (0.1, 0.5):
            self._later(now + share * self._seconds, lambda share=share: self._put_progress(artifact, share))
        self._later(now + self._seconds - 1, lambda: self._put_manifest(artifact, begun))

    def _put_progress(self, artifact: Artifact, share: float) -> None:
        self._put(artifact.progress_path, progress(artifact, share).model_dump_json(by_alias=True))

    def _put_manifest(self, artifact: Artifact, begun: datetime) -> None:
        self._put(artifact.manifest_path, manifest(artifact, begun).model_dump_json(by_alias=True))

    def _put(self, path: str, text: str) -> None:
        data = text.encode()
        self._store.put_object(
            bucket_name=self._bucket, object_name=path, data=io.BytesIO(data), length=len(data)
        )

    def _later(self, at: float, do: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, _Due(at, do))
            self._changed.notify()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                wait = self._due[0].at - time.monotonic() if self._due else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                due = heapq.heappop(self._due)
            self._puts.submit(due.do).add_done_callback(_raise)

    def _statuses(self) -> None:
        path = f"/apis/trenchcoat.dev/v1alpha1/namespaces/{self._namespace}/trenchcoats"
        for event in self._api.watch(path, self._stop):
            body = event["object"]
            name, status = body["metadata"]["name"], body.get("status") or {}
            if event["type"] == "DELETED":
                continue
            now = {
                f"stage {row['name']}": row["state"]
                for row in status.get("stages", [])
                if row["name"] != "cria"
            }
            now |= {f"cria {row.get('index', 0)}": row["state"] for row in status.get("crias", [])}
            before = self._rows.get(name, {})
            if event["type"] == "MODIFIED":
                self.status_writes += 1
            for row, state in now.items():
                if before.get(row, "Blocked") != state:
                    self.transitions[state] += 1
            self._rows[name] = now
            for condition in status.get("conditions", []):
                if condition["type"] == "Stalled" and condition["status"] == "True":
                    raise RuntimeError(f"{name} stalled: {condition['message']}")
                if condition["type"] == "Succeeded" and condition["status"] == "True":
                    self.done.setdefault(name, time.monotonic())


def _raise(future: Any) -> None:
    if not future.cancelled() and future.exception() is not None:
        threading.excepthook(
            threading.ExceptHookArgs((type(future.exception()), future.exception(), None, None))
        )
