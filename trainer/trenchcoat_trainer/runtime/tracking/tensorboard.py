"""Event files of TensorBoard in the store."""

import math
import tempfile
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from trenchcoat_trainer.runtime.tracking.point import Point, Work
from trenchcoat_trainer.store import Store

LARGEST = 1_000_000
"""Bytes of a file before the next one begins: a store cannot append, so a file is written whole each time."""


class TensorBoard:
    """Writes event files here, and copies them into the store."""

    name = "TensorBoard"

    def __init__(self, store: Store, prefix: str, work: Work) -> None:
        """`prefix` is the folder within the bucket for all of TensorBoard's files, ending in a slash."""
        self._store = store
        self._prefix = f"{prefix}{work.trenchcoat}/{work.run}/{work.artifact}/"
        self._folder = tempfile.TemporaryDirectory(prefix="tensorboard-")
        self._writer: SummaryWriter | None = None
        self._copied: dict[str, int] = {}

    def record(self, point: Point) -> None:
        """Write a point into the file at hand."""
        writer = self._open()
        for name, value in point.values.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, point.step, walltime=point.seconds)

    def flush(self) -> None:
        """Copy what is new into the store."""
        if self._writer is not None:
            self._writer.flush()
        for file in self._files():
            data = file.read_bytes()
            if self._copied.get(file.name) != len(data):
                self._store.write(self._prefix + file.name, data)
                self._copied[file.name] = len(data)
        newest = max(self._files(), key=lambda file: file.stat().st_mtime, default=None)
        if newest is not None and newest.stat().st_size > LARGEST:
            self._finish()

    def close(self, *, complete: bool) -> None:
        """Copy the rest."""
        self._finish()
        self.flush()
        self._folder.cleanup()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            # TensorBoard reads files of a folder by their names, which begin with the second of their making.
            made = {file.name for file in self._files()}
            while any(f".{time.time():.0f}." in name for name in made):
                time.sleep(0.1)
            self._writer = SummaryWriter(self._folder.name, flush_secs=3600)
        return self._writer

    def _files(self) -> list[Path]:
        return sorted(Path(self._folder.name).iterdir())

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
