"""Results for the hub: read back by the hub's own client."""

import yaml
from huggingface_hub import EvalResultEntry
from huggingface_hub._eval_results import parse_eval_result_entries
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.results import Evaluation, TaskResult
from trenchcoat_trainer.stages.export.eval_results import eval_results


def facts(*tasks):
    return Facts(evaluation=Evaluation(sequence_length=64, tasks=list(tasks)))


def task(name="colours", metric="acc", **fields):
    values = {"teacher": "0.75", "stitched": "0.5"}
    return TaskResult(
        task=name, metric=metric, samples=16, values=values, errors={"stitched": "0.13"}, **fields
    )


def test_a_task_that_names_a_benchmark_has_a_file():
    hub = {"hub_dataset": "owner/colours", "hub_task": "default"}
    files = eval_results(facts(task(**hub), task(metric="acc_norm", **hub), task("other")))
    assert list(files) == [".eval_results/colours.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/colours.yaml"]))
    assert entry == EvalResultEntry(
        dataset_id="owner/colours",
        task_id="default",
        value=0.5,
        notes="acc, standard error 0.13; 16 questions, lm-evaluation-harness",
    )


def test_a_name_is_no_path():
    (path,) = eval_results(facts(task("../up", hub_dataset="owner/up", hub_task="default")))
    assert path == ".eval_results/.._up.yaml"


def test_without_results_there_is_none():
    assert eval_results(None) == {}
    assert eval_results(Facts()) == {}
    assert eval_results(facts(task())) == {}
