"""Results on benchmarks of the Hugging Face hub, in the files that its model pages and leaderboards read."""

import re
from collections.abc import Iterable

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.results import ModelForm, TaskResult

FOLDER = ".eval_results/"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def eval_results(measured: Facts | None) -> dict[str, bytes]:
    """Return the files by path: one for each task whose metadata name a benchmark, with the student's value.

    A task of several metrics is told by its first, for a benchmark's task has one value.
    """
    tasks = measured.evaluation.tasks if measured is not None and measured.evaluation is not None else []
    files: dict[str, bytes] = {}
    for task in _on_the_hub(tasks):
        path = f"{FOLDER}{_UNSAFE.sub('_', task.task)}.yaml"
        if path in files:
            continue
        error = task.errors.get(ModelForm.STITCHED)
        entry = EvalResultEntry(
            dataset_id=task.hub_dataset,
            task_id=task.hub_task,
            value=float(task.values[ModelForm.STITCHED]),
            notes=(
                f"{task.metric}{f', standard error {error}' if error else ''}; {task.samples} questions, "
                "lm-evaluation-harness"
            ),
        )
        files[path] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode()
    return files


def _on_the_hub(tasks: Iterable[TaskResult]) -> Iterable[TaskResult]:
    return (
        task for task in tasks if task.hub_dataset and task.hub_task and ModelForm.STITCHED in task.values
    )
