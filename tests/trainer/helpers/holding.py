"""A stage that stays at a known point until it is asked to stop, so that no signal can come too late."""

import os
from pathlib import Path

from trenchcoat_trainer.stages.collect.pipeline import Pipeline

from tests.waiting import until

REPO = Path(__file__).resolve().parents[3]
TIMEOUT = 600.0
"""Seconds; the signal comes when the test has seen the progress."""
_AT_START = """\
import os

if "RANK" in os.environ:
    from tests.trainer.helpers.holding import hold_collect

    hold_collect()
"""


def hold_collect() -> None:
    """Let this process's collect do one batch, tell its progress, and then wait until a stop is requested."""
    go_on = Pipeline.go_on
    batches = 0

    def held(pipeline: Pipeline) -> bool:
        nonlocal batches
        if batches > 0 and pipeline._rank == 0:
            stop = pipeline._context.stop
            until(lambda: stop.requested, TIMEOUT, "it is asked to stop")
        batches += 1
        return go_on(pipeline)

    Pipeline.go_on = held  # type: ignore[method-assign]


def holding_ranks(folder: Path) -> dict[str, str]:
    """Variables with which a command's ranks hold their collect: Python runs a file in `folder` first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_AT_START)
    paths = [str(folder), str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
