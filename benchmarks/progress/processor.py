"""The time left that a stage tells, by the processor's time, which other work on a machine does not stretch.

    python benchmarks/progress/processor.py evaluate examples/tiny.yaml build/store

makes the artifact of one stage of a run in a folder once more, in a copy and by one thread, with the clock of
its reports set to the seconds of processor that it takes; prints of each what was told, and what then came.
"""

import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.program import run_program
from trenchcoat_trainer.reporting.writing import ENV_REPORT
from trenchcoat_trainer.runtime import progress
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.stages.evaluate import course

FROM, TO = 0.1, 0.9


def run(stage: Stage, spec: Path, folder: Path) -> list[tuple[float, float, float]]:
    """Each report between a tenth and nine as (share done, seconds told, seconds that then came)."""
    told: list[tuple[float, float, float]] = []
    report = progress.ProgressReporter._report

    def note(self: progress.ProgressReporter, *arguments: object) -> None:
        left = self.forecast() if self.forecast is not None else self._pace.left()
        if left is not None:
            told.append((self._fraction, left, time.process_time()))
        report(self, *arguments)

    progress.ProgressReporter._report = note
    clock = SimpleNamespace(monotonic=time.process_time)
    progress.time = course.time = clock
    os.environ[ENV_REPORT] = "never"  # which the command draws once the stage is complete
    torch.set_num_threads(1)
    artifact = open_context(Trenchcoat.from_yaml(spec).spec, stage, folder=folder).artifact
    bucket = Trenchcoat.from_yaml(spec).spec.store.bucket
    shutil.rmtree(folder / bucket / artifact.prefix)
    if code := run_program(stage, spec, cria=None, folder=folder, stop=StopRequest()):
        sys.exit(f"the stage failed: exit code {code}")
    end = time.process_time()
    return [(share, left, end - at) for share, left, at in told if FROM <= share <= TO]


def main() -> None:
    """Print a line for each report, and what stands in the README."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(shutil.copytree(sys.argv[3], Path(copy) / "store"))
        found = run(Stage(sys.argv[1]), Path(sys.argv[2]), folder)
    offs = [left / came - 1 for _, left, came in found]
    for (share, left, came), off in zip(found, offs, strict=True):
        print(f"{share:.0%} done: told {left:.1f} s, then took {came:.1f} s: {off:+.0%}")
    near = sum(abs(off) <= 0.2 for off in offs) / len(offs)
    print(f"first {offs[0]:+.0%}, all {min(offs):+.0%} to {max(offs):+.0%}, within 20%: {near:.0%}")


if __name__ == "__main__":
    main()
