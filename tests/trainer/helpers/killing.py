"""Stages as real processes that kill themselves (SIGKILL) at a chosen point, for tests of resuming.

A *point* is a place in the program where a process may die: before an optimiser step or a batch, and four
times in every write to a folder (before it, with half of its last piece in the file, with all of it but not
renamed, and after it), or twice in every request that changes an S3 store (before it is sent, and once it is
answered). Points are counted by kind, so that a kill can be aimed at each.
"""

import importlib
import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from minio import Minio
from trenchcoat_api.artifacts import Artifact, Manifest, StoredObject
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.store import FolderStore, Store, open_store

TIMEOUT = 600.0
"""Seconds; on a machine that does much else every start takes long."""
PRELOADED = [
    "tests.trainer.helpers.deepspeed_on_cpu",
    "tests.trainer.helpers.killing",
    "tests.trainer.helpers.trainer_samples",
    "trenchcoat_trainer.cli",
    "trenchcoat_trainer.stages.collect",
    "trenchcoat_trainer.stages.cria",
    "trenchcoat_trainer.stages.evaluate",
    "trenchcoat_trainer.stages.export",
    "trenchcoat_trainer.stages.stitch",
    "trenchcoat_trainer.stages.tokenize",
]
COUNTS = "counts.json"
WRITE_EVERYTHING = {
    "trenchcoat_trainer.runtime.writer.JOURNAL_SECONDS": 0.0,
    "trenchcoat_trainer.stages.cria.loop.CHECKPOINT_SECONDS": 0.0,
    "trenchcoat_trainer.stages.cria.loop.CHECKPOINT_SHARE": 1e9,
    "trenchcoat_trainer.stages.stitch.CHECKPOINT_SECONDS": 0.0,
    "trenchcoat_trainer.stages.tokenize.CHECKPOINT_SECONDS": 0.0,
    "trenchcoat_trainer.stages.evaluate.saved.CHECKPOINT_SECONDS": 0.0,
}
"""So that a run of seconds has as many checkpoints as one of hours."""


@dataclass(frozen=True)
class Kill:
    """Die at the `count`-th point of a kind, counted from the start of the process."""

    kind: str
    count: int


@dataclass
class Killer:
    """Counts the points that this process passes, and dies at one of them."""

    kill: Kill | None
    passed: Counter[str] = field(default_factory=Counter)

    def point(self, kind: str) -> None:
        self.passed[kind] += 1
        if self.kill and kind == self.kill.kind and self.passed[kind] == self.kill.count:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Put points into the program of this process."""
        from trenchcoat_trainer.runtime.training import Cursor
        from trenchcoat_trainer.stages.collect.pipeline import Pipeline

        self._before(Cursor, "note", "step")
        self._before(Pipeline, "go_on", "batch")
        original = FolderStore._created

        @contextmanager
        def created(store: FolderStore, path: str) -> Iterator[Any]:
            place = "checkpoint" if "/checkpoint/" in path else "object"
            if path.endswith("/manifest.json"):
                place = "manifest"
            if path.endswith(("/progress.json", "/clock.json", "/paces.json")) or "/artifacts/" not in path:
                place = "other"
            self.point(f"{place}: before")
            with original(store, path) as target:
                halves = _InHalves(target)
                yield halves
                halves.finish(lambda: self.point(f"{place}: half"))
                target.flush()
                self.point(f"{place}: not renamed")
            self.point(f"{place}: after")

        FolderStore._created = created  # type: ignore[method-assign]
        execute = Minio._execute

        def executed(client: Minio, method: str, *arguments: Any, **named: Any) -> Any:
            if method in ("GET", "HEAD"):
                return execute(client, method, *arguments, **named)
            self.point(f"{method}: before")
            answer = execute(client, method, *arguments, **named)
            self.point(f"{method}: after")
            return answer

        Minio._execute = executed  # type: ignore[method-assign]

    def _before(self, owner: type, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.point(kind)
            return original(*arguments, **named)

        setattr(owner, name, wrapped)


class _InHalves:
    """A file whose last write may be cut in the middle: one point a file, in however many pieces it is."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._last: bytes | memoryview = b""

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(self._last)
        self._last = data

    def tell(self) -> int:
        position: int = self._file.tell()
        return position + len(self._last)

    def finish(self, half: Callable[[], None]) -> None:
        middle = len(self._last) // 2
        self._file.write(self._last[:middle])
        self._file.flush()
        half()
        self._file.write(self._last[middle:])


def run_process(
    command: list[str],
    environment: dict[str, str],
    settings: dict[str, Any],
    kill: Kill | None,
    counts: Path | None,
) -> None:
    """What a child process does: the command `trenchcoat`, with points."""
    import torch

    torch.set_num_threads(1)
    os.environ |= environment
    for name, value in settings.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    killer = Killer(kill)
    killer.watch()
    from trenchcoat_trainer.cli import main

    code = main(command)
    if counts is not None:
        counts.write_text(json.dumps(killer.passed))
    raise SystemExit(code)


@dataclass
class StageRunner:
    """Runs one stage over one folder in as many processes as wanted, killed where wanted."""

    spec: TrenchcoatSpec
    artifact: Artifact
    folder: Path
    settings: dict[str, Any]
    on_s3: bool = False
    """The store is that of the spec, not the folder, which then holds the spec and logs alone."""

    def run(
        self,
        kill: Kill | None = None,
        *,
        world_size: int = 1,
        killed_rank: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[list[int | None], Counter[str]]:
        """Start all ranks and wait; when one was killed, kill the others too, as a cluster does.

        `environment` are variables of all of them.

        Returns:
            Exit codes, and the points that the rank to be killed has passed if it was not.
        """
        ranks = self.start(kill, world_size=world_size, killed_rank=killed_rank, environment=environment)
        counts = self.folder / COUNTS
        ranks[killed_rank].join(TIMEOUT)
        if ranks[killed_rank].exitcode != 0:
            for process in ranks:
                process.kill()
        for process in ranks:
            process.join(TIMEOUT)
        passed = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
        return [process.exitcode for process in ranks], passed

    def start(
        self,
        kill: Kill | None = None,
        *,
        world_size: int = 1,
        killed_rank: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> list[Any]:
        """Start all ranks, as `run` does, and return their processes."""
        spec_file = write_spec(self.spec, self.folder)
        command = [self.artifact.stage.value, "--spec", str(spec_file)]
        if not self.on_s3:
            command += ["--store", str(self.folder)]
        if self.artifact.cria is not None:
            command += ["--cria", str(self.artifact.cria.index)]
        counts = self.folder / COUNTS
        counts.unlink(missing_ok=True)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(PRELOADED)
        port = free_port()
        ranks = []
        for rank in range(world_size):
            own = {"TRENCHCOAT_TERMINATION_LOG": str(self.folder / f"termination-{rank}")}
            own |= environment or {}
            # The server that processes are forked from may be older than these.
            own |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            if world_size > 1:
                own |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            chosen = rank == killed_rank
            arguments = (
                command,
                own,
                WRITE_EVERYTHING | self.settings,
                kill if chosen else None,
                counts if chosen else None,
            )
            ranks.append(processes.Process(target=run_process, args=arguments))
        for process in ranks:
            process.start()
        return ranks

    @property
    def store(self) -> Store:
        """Where the artifact is made."""
        return open_store(self.spec, None if self.on_s3 else self.folder)

    def manifest(self) -> Manifest:
        """The manifest of the finished artifact."""
        return Manifest.model_validate_json(self.store.read(self.artifact.manifest_path))

    def is_complete(self) -> bool:
        """Whether there is a manifest."""
        return self.store.exists(self.artifact.manifest_path)

    def leftovers(self) -> list[str]:
        """Checkpoints that are still there."""
        return [entry.path for entry in self.store.list(self.artifact.checkpoint_prefix)]


def choose_kills(passed: Counter[str], seed: int) -> list[Kill]:
    """One kill for every kind of point, at random.

    First of what happens often, in a random order and each after a small share of all its points, so that
    work is left for the kills that follow; then of what happens a few times, and at last of the manifest.
    """
    source = random.Random(seed)
    kinds = [kind for kind in sorted(passed) if not kind.startswith(("other", "manifest"))]
    often = [kind for kind in kinds if passed[kind] >= 5]
    rare = [kind for kind in kinds if passed[kind] < 5]
    source.shuffle(often)
    source.shuffle(rare)
    kills = [Kill(kind, source.randint(1, max(1, passed[kind] // len(often)))) for kind in often]
    kills += [Kill(kind, 1) for kind in rare]
    last = [f"manifest: {place}" for place in ("before", "half", "not renamed", "after")]
    return kills + [Kill(kind, 1) for kind in last if passed[kind]]


def results(manifest: Manifest) -> tuple[list[StoredObject], str]:
    """What must be the same however often a stage was killed: every object's checksum, and the facts."""
    return manifest.objects, manifest.facts.model_dump_json()


def write_spec(spec: TrenchcoatSpec, folder: Path) -> Path:
    """Write the spec as a user does."""
    file = folder / "trenchcoat.yaml"
    document = {
        "apiVersion": "trenchcoat.dev/v1alpha1",
        "kind": "Trenchcoat",
        "metadata": {"name": "t"},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    file.write_text(yaml.safe_dump(document))
    return file
