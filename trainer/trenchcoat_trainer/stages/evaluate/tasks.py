"""Tasks of lm-evaluation-harness: which forms run them, what is left of a former attempt, what came out."""

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from trenchcoat_api import texts
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.results import TaskResult
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.sources.task_files import fetch_tasks
from trenchcoat_trainer.stages.evaluate.whole import WHOLE_FORMS, whole_model

logger = logging.getLogger(__name__)

HARNESS = "lm_eval"
SAVED = "tasks"
ROOM = 1.25
"""Of a GPU's memory, as often as the weights take must be free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    """With the name of its filter, where that is not none."""
    samples: int
    value: float
    error: float | None
    """Standard error, where the harness tells one."""
    hub_dataset: str | None = None
    """The benchmark's data set on the hub, where the task's metadata name it."""
    hub_task: str | None = None


TaskScores = dict[str, list[TaskScore]]
"""By the form's name."""


def check_harness(spec: TrenchcoatSpec) -> None:
    """Raise BadInputError where tasks are asked for and the harness is not installed."""
    if spec.evaluate.tasks is not None and importlib.util.find_spec(HARNESS) is None:
        raise BadInputError(
            "spec.evaluate.tasks needs lm-evaluation-harness, which is not installed here: set "
            "spec.pods.evaluate.image to an image made by trainer/tasks.Dockerfile, install the extra "
            "trenchcoat[trainer,tasks], or remove spec.evaluate.tasks"
        )


def why_no_tasks(spec: TrenchcoatSpec, model: ModelFacts, device: torch.device) -> str:
    """Say why the whole model cannot run them on `device`; empty where it can."""
    if device.type != "cuda":
        return ""
    needed = model.parameters * ITEM_BYTES[spec.dtype]
    free = torch.cuda.mem_get_info(device)[0]
    if needed * ROOM <= free:
        return ""
    return (
        f"tasks: they run the whole model, whose weights take {texts.size(needed)}, and the GPU has "
        f"{texts.size(free)} free"
    )


def run_tasks(context: StageContext, forms: Sequence[str], device: torch.device) -> TaskScores:
    """Run the spec's tasks with every form that can be had whole; those of an earlier attempt are kept.

    Args:
        context: the stage's context.
        forms: names of the forms that are compared.
        device: where to run them.

    Raises:
        BadInputError: a task's files cannot be used, or there is no such task.
        PreemptedError: a stop was requested.
    """
    asked = context.spec.evaluate.tasks
    if asked is None:
        return {}
    # Heavy, and not there without the extra.
    from trenchcoat_trainer.stages.evaluate.harness import Harness

    saved = context.checkpoint.load(SAVED)
    rows: dict[str, list[dict[str, Any]]] = saved[1] if saved else {}
    scores = {form: [TaskScore(**row) for row in found] for form, found in rows.items()}
    wanted = [form for form in WHOLE_FORMS if form in forms]
    with tempfile.TemporaryDirectory(prefix="trenchcoat-") as folder:
        fetch_tasks(asked, context.store, Path(folder))
        harness = Harness(context, asked, Path(folder))
        # Of those that an earlier attempt has run nothing is told: they would seem to take no time.
        missing = [form for form in wanted if form.value not in scores]
        for done, form in enumerate(missing, len(wanted) - len(missing) + 1):
            context.stop.check()
            logger.info("running tasks with %s", form.value)
            scores[form.value] = harness.run(whole_model(context, form, device))
            told = {name: [asdict(row) for row in found] for name, found in scores.items()}
            context.checkpoint.save({}, told, SAVED)
            context.progress.update(SAVED, done, len(wanted), fraction=0.5 + 0.5 * done / len(wanted))
    return scores


def task_results(scores: TaskScores) -> list[TaskResult]:
    """The same, a row for each metric."""
    first = next(iter(scores.values()), [])
    results = []
    for row in first:
        found = {
            form: next(own for own in rows if (own.task, own.metric) == (row.task, row.metric))
            for form, rows in scores.items()
        }
        results.append(
            TaskResult(
                task=row.task,
                metric=row.metric,
                samples=row.samples,
                hub_dataset=row.hub_dataset,
                hub_task=row.hub_task,
                values={form: f"{own.value:.6g}" for form, own in found.items()},
                errors={form: f"{own.error:.2g}" for form, own in found.items() if own.error is not None},
            )
        )
    return results
