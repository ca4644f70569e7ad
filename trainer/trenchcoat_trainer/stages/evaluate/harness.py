"""lm-evaluation-harness, run on a model in memory, without anything being downloaded."""

import math
from pathlib import Path
from typing import Any

import datasets
import evaluate
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel
from trenchcoat_api.spec import Tasks

from trenchcoat_trainer.checkpoints.stored_tokenizer import stored_tokenizer
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.stages.evaluate.tasks import TaskScore

BOOTSTRAPS = 1000
"""Draws for the errors of metrics that are no means."""
_SEED = 2**32


class StoppableModel(HFLM):
    """The harness's own wrapper of a model, which looks before every batch whether it shall stop."""

    def __init__(self, stop: StopRequest, **options: Any) -> None:
        super().__init__(**options)
        self._stop = stop

    def _model_call(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self._stop.check()
        return super()._model_call(*arguments, **options)

    def _model_generate(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self._stop.check()
        return super()._model_generate(*arguments, **options)


class Harness:
    """The tasks of a folder, and how they are run."""

    def __init__(self, context: StageContext, asked: Tasks, folder: Path) -> None:
        """Raises BadInputError where there is no such task."""
        # Read at import, where whoever uses these libraries may not have thought of it.
        datasets.config.HF_HUB_OFFLINE = True
        evaluate.config.HF_EVALUATE_OFFLINE = True
        self._context = context
        self._asked = asked
        self._tasks = TaskManager(include_path=str(folder), include_defaults=False)
        self._tokenizer = stored_tokenizer(context)
        if unknown := [name for name in asked.names if name not in self._tasks.all_tasks]:
            known = ", ".join(self._tasks.all_tasks) or "none"
            raise BadInputError(
                f"spec.evaluate.tasks.names has {unknown[0]}, but the files of {asked.source} have {known}: "
                "correct the name"
            )

    def run(self, model: PreTrainedModel) -> list[TaskScore]:
        """Run all tasks with a model.

        Raises:
            BadInputError: the harness cannot make sense of a task.
            PreemptedError: a stop was requested.
        """
        seed = self._context.spec.seed % _SEED
        own = StoppableModel(
            self._context.stop,
            pretrained=model,
            tokenizer=self._tokenizer,
            batch_size=self._context.spec.evaluate.batch_size,
        )
        found = simple_evaluate(
            model=own,
            tasks=list(self._asked.names),
            num_fewshot=self._asked.few_shot,
            limit=self._asked.limit,
            task_manager=self._tasks,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        return _scores(found)


def _scores(found: dict[str, Any]) -> list[TaskScore]:
    """What simple_evaluate returns, a row for each metric."""
    rows = []
    for task, metrics in found["results"].items():
        samples = found["n-samples"].get(task, {}).get("effective", 0)
        told = found["configs"].get(task, {}).get("metadata")
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{chosen}")
            is_known = isinstance(error, int | float) and math.isfinite(error)
            rows.append(
                TaskScore(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    samples=samples,
                    value=float(value),
                    error=float(error) if is_known else None,
                    hub_dataset=_text(told, "hub_dataset"),
                    hub_task=_text(told, "hub_task"),
                )
            )
    return rows


def _text(metadata: Any, name: str) -> str | None:
    value = metadata.get(name) if isinstance(metadata, dict) else None
    return str(value) if value is not None else None
