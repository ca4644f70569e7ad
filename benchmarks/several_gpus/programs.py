"""Programs of the product run as they are: Crias as GPUs come free, and a stitch that loses a rank."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from trenchcoat_api.artifacts import Manifest, Progress
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.opening import open_context

TRAINER = [sys.executable, "-m", "trenchcoat_trainer"]
LINE = re.compile(r"(?P<name>[a-z]+(?:-\d+)?): (?P<what>started|complete in)")


def run_crias(spec_file: Path, store: Path, at_once: int, deadline: float) -> dict[str, Any]:
    """Run everything up to the Crias' end by `trenchcoat run`, and hold its makespan against the bound.

    Raises:
        RuntimeError: a Cria was not trained by `deadline`, a time of the monotonic clock.
    """
    command = [*TRAINER, "run", str(spec_file), "--store", str(store), "--parallel-crias", str(at_once)]
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    lines = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = threading.Timer(max(1.0, deadline - time.monotonic()), process.terminate)
    limit.start()
    try:
        for line in process.stdout or ():
            lines.append(line)
            if not (match := LINE.match(line)):
                continue
            (began if match["what"] == "started" else ended)[match["name"]] = time.perf_counter()
            if match["name"] == Stage.STITCH.value:
                break  # it starts once all Crias are there
        process.terminate()
        process.communicate()
    finally:
        limit.cancel()
        process.kill()
    crias = sorted(name for name in ended if name.startswith("cria"))
    expected = len(open_context(Trenchcoat.from_yaml(spec_file).spec, Stage.STITCH, folder=store).crias)
    if len(crias) != expected:
        raise RuntimeError(f"{len(crias)} of {expected} Crias are complete:\n{''.join(lines[-20:])}")
    seconds = [ended[name] - began[name] for name in crias]
    makespan = max(ended[name] for name in crias) - min(began[name] for name in crias)
    lowest = bound(seconds, at_once)
    return {
        "part": "crias",
        "ranks": at_once,
        "crias": len(crias),
        "makespan_s": makespan,
        "bound_s": lowest,
        "of_bound": makespan / lowest,
        "cria_seconds": seconds,
        "stages_s": {
            name: ended[name] - began[name] for name in ended if name in began and name not in crias
        },
    }


def bound(seconds: list[float], machines: int) -> float:
    """Return what no schedule on so many machines can be shorter than.

    Of the longest k * machines + 1 jobs, k + 1 have to follow one another.
    """
    longest = sorted(seconds, reverse=True)
    in_a_row = [(k + 1) * longest[k * machines] for k in range(-(-len(longest) // machines))]
    return max(sum(seconds) / machines, *in_a_row)


class Stitching:
    """The stitch of a store whose Crias are complete, as a program, in copies of that store."""

    def __init__(self, spec_file: Path, store: Path, folder: Path, deadline: float) -> None:
        """Take a spec and its store, make copies in `folder`; `deadline` is of the monotonic clock."""
        self._spec_file, self._store, self._folder, self._deadline = spec_file, store, folder, deadline
        self._spec = Trenchcoat.from_yaml(spec_file).spec

    def curves(self, ranks: list[int]) -> dict[str, Any]:
        """Stitch with each number of ranks, and compare what they tell of their losses."""
        found: dict[str, Any] = {}
        for count in ranks:
            context = self._copy(f"ranks-{count}")
            began = time.perf_counter()
            self._end(self._start(context, count), context)
            manifest = self._manifest(context)
            found[str(count)] = {
                "losses": {name: float(loss) for name, loss in manifest.facts.losses.items()},
                "curve": curve(manifest),
                "seconds": time.perf_counter() - began,
            }
        first = found[str(ranks[0])]
        for told in found.values():
            told["furthest_from_first"] = furthest(told["curve"], first["curve"])
        return {"part": "curves", "runs": found}

    def kill(self, ranks: int, after: int, undisturbed: list[float]) -> dict[str, Any]:
        """Stop a stitch after its checkpoint, go on, kill a rank, and go on with one rank."""
        context = self._copy(f"killed-{ranks}")
        stopped = self._start(context, ranks)
        self._wait_for_step(stopped, context, 3)
        stopped.terminate()
        self._wait(stopped, context)
        saved = context.checkpoint.load()
        if saved is None:
            raise RuntimeError(f"the stitch left no checkpoint when it was stopped:\n{self._log(context)}")
        bereft = self._start(context, ranks)
        self._wait_for_step(bereft, context, saved[1]["cursor"]["done"] + 2)
        children = Path(f"/proc/{bereft.pid}/task/{bereft.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        began = time.perf_counter()
        code = self._wait(bereft, context)
        seconds = time.perf_counter() - began
        self._end(self._start(context, after), context)
        manifest = self._manifest(context)
        return {
            "part": "kill",
            "ranks": ranks,
            "then": after,
            "ended_after_s": seconds,
            "exit_code": code,
            "saved_at_step": saved[1]["cursor"]["done"],
            "furthest_from_undisturbed": furthest(curve(manifest), undisturbed),
        }

    def _copy(self, name: str) -> StageContext:
        folder = self._folder / name
        shutil.copytree(self._store, folder, copy_function=os.link)
        context = open_context(self._spec, Stage.STITCH, folder=folder, place=Place())
        shutil.rmtree(folder / self._spec.store.bucket / context.artifact.prefix, ignore_errors=True)
        return open_context(self._spec, Stage.STITCH, folder=folder, place=Place())

    def _start(self, context: StageContext, ranks: int) -> subprocess.Popen[bytes]:
        words = ["stitch", "--spec", str(self._spec_file), "--store", str(context.folder)]
        variables = {"TRENCHCOAT_TERMINATION_LOG": str(self._file(context, "termination"))}
        with self._file(context, "log").open("ab") as log:
            return subprocess.Popen(
                [*TRAINER, *words, "--processes", str(ranks)],
                env=os.environ | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _end(self, process: subprocess.Popen[bytes], context: StageContext) -> None:
        if (code := self._wait(process, context)) != 0:
            raise RuntimeError(f"the stitch ended with {code}:\n{self._log(context)}")

    def _wait(self, process: subprocess.Popen[bytes], context: StageContext) -> int:
        try:
            return process.wait(max(1.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            process.terminate()  # it ends its ranks
            process.wait()
            raise RuntimeError(f"the stitch ran into the time limit:\n{self._log(context)}") from error

    def _wait_for_step(self, process: subprocess.Popen[bytes], context: StageContext, step: int) -> None:
        while process.poll() is None and time.monotonic() < self._deadline:
            if context.store.exists(context.artifact.progress_path):
                text = context.store.read(context.artifact.progress_path)
                if Progress.model_validate_json(text).step >= step:
                    return
            time.sleep(0.05)
        process.terminate()
        process.wait()
        raise RuntimeError(f"the stitch does not come to step {step}:\n{self._log(context)}")

    def _manifest(self, context: StageContext) -> Manifest:
        return Manifest.model_validate_json(context.store.read(context.artifact.manifest_path))

    def _file(self, context: StageContext, kind: str) -> Path:
        return self._folder / f"{Path(str(context.folder)).name}.{kind}"

    def _log(self, context: StageContext) -> str:
        return self._file(context, "log").read_text()[-4000:]


def curve(manifest: Manifest) -> list[float]:
    """Return the losses of a stitch's curve."""
    return [float(loss) for loss in manifest.facts.curve]


def furthest(one: list[float], other: list[float]) -> float:
    """Return the largest difference between two curves, as a part of the second's value."""
    return max(abs(x - y) / y for x, y in zip(one, other, strict=True))
