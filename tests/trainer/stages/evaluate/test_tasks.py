"""Tasks by the real lm-evaluation-harness: `make test-tasks` installs it; without it these are skipped."""

import json

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError, PreemptedError
from trenchcoat_trainer.stages import evaluate

from tests.trainer.helpers.trainer_samples import StopAfter
from tests.trainer.stages.evaluate.test_evaluate import stitched_student

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: make test-tasks")

CHOICE = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0, "hub_dataset": "owner/colours", "hub_task": "default"},
}
GENERATION = {
    "task": "goes_on",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{goes_on}}",
    "generation_kwargs": {"until": ["\u0000"], "max_gen_toks": 5, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
QUESTIONS = [
    "the quick brown fox jumps over",
    "the",
    "lines of text over lines of text over lines of text over",
    "a lazy dog",
    "brown",
    "over the quick fox of text the dog jumps and jumps again over lines and lines of the same text",
]
CHOICES = [" dog", " the lazy", " fox jumps"]


@torch.no_grad()
def greedy(model, tokenizer, question: str) -> str:
    """What the model goes on with, alone and without a cache."""
    ids = tokenizer.encode(question, return_tensors="pt", add_special_tokens=False)
    start = ids.shape[1]
    for _ in range(5):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, start:])


@torch.no_grad()
def likeliest(model, tokenizer, question: str) -> int:
    found = []
    before = len(tokenizer.encode(question, add_special_tokens=False))
    for choice in CHOICES:
        ids = tokenizer.encode(question + choice, return_tensors="pt", add_special_tokens=False)
        logs = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        found.append(logs.gather(2, ids[:, 1:, None])[0, before - 1 :].sum().item())
    return found.index(max(found))


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return LlamaForCausalLM.from_pretrained(teacher_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture
def tasks(tmp_path, teacher, tokenizer):
    """A folder of tasks whose answers are the teacher's own, but for the last question's."""
    folder = tmp_path / "tasks"
    (folder / "more").mkdir(parents=True)
    rows = [
        {
            "question": question,
            "choices": CHOICES,
            "answer": likeliest(teacher, tokenizer, question),
            "goes_on": greedy(teacher, tokenizer, question),
        }
        for question in QUESTIONS
    ]
    rows[-1]["answer"] = (rows[-1]["answer"] + 1) % 3
    rows[-1]["goes_on"] += "no"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "colours.yaml").write_text(yaml.safe_dump(CHOICE))
    (folder / "questions.jsonl").write_text(lines)
    (folder / "more" / "goes_on.yaml").write_text(yaml.safe_dump(GENERATION))
    (folder / "more" / "questions.jsonl").write_text(lines)
    return {"source": folder.as_uri(), "names": ["colours", "goes_on"]}


@pytest.fixture
def open_it(open_training, training_spec, change, tasks):
    def opened(store="store", stop=None, **fields):
        quick = {"lengthMultiples": [], "recallSamples": 0, "tasks": tasks, "batchSize": 4}
        spec = change(training_spec, evaluate=quick | fields)
        return open_training(spec, Stage.EVALUATE, store=store, trained="stitched_store", stop=stop)

    return opened


def results(context):
    found = context.manifest(context.artifact).facts.evaluation.tasks
    return {(row.task, row.metric): row for row in found}


def test_teacher_and_student_answer_as_the_whole_models_do(open_it, tokenizer, tasks):
    context = open_it()
    evaluate.run(context)
    found = results(context)
    assert set(found) == {("colours", "acc"), ("goes_on", "exact_match")}
    student = stitched_student(context)
    folder = tasks["source"].removeprefix("file://")
    with open(f"{folder}/questions.jsonl") as file:
        rows = [json.loads(line) for line in file]
    chosen = [likeliest(student, tokenizer, row["question"]) == row["answer"] for row in rows]
    written = [greedy(student, tokenizer, row["question"]) == row["goes_on"] for row in rows]
    for row, right in ((found["colours", "acc"], chosen), (found["goes_on", "exact_match"], written)):
        assert row.samples == 6
        assert float(row.values["teacher"]) == pytest.approx(5 / 6, rel=1e-5)
        assert float(row.values["stitched"]) == pytest.approx(sum(right) / 6, rel=1e-5)
        assert float(row.errors["teacher"]) == pytest.approx((5 / 36 / 5) ** 0.5, rel=0.05)
    row = found["colours", "acc"]
    assert (row.hub_dataset, row.hub_task) == ("owner/colours", "default")
    assert found["goes_on", "exact_match"].hub_dataset is None
    report = json.loads(context.read_object(context.artifact, evaluate.REPORT))
    assert set(report["tasks"]) == {"teacher", "stitched"}


def test_questions_one_by_one_give_the_same(open_it):
    together, alone = open_it(batchSize=4), open_it(store="alone", batchSize=1)
    evaluate.run(together)
    evaluate.run(alone)
    assert results(together) == results(alone)


def test_fewer_questions_with_examples(open_it, tasks):
    context = open_it(tasks=tasks | {"limit": 2, "fewShot": 1, "names": ["colours"]})
    evaluate.run(context)
    assert [row.samples for row in results(context).values()] == [2]


def test_forms_that_were_finished_are_not_run_again(open_it, monkeypatch):
    stopped = open_it(stop=StopAfter(10**9))
    made = []
    whole = evaluate.tasks.whole_model

    def noting(context, form, device):
        made.append(form.value)
        if form.value == "stitched" and len(made) == 2:
            context.stop._looks = 1  # as if the pod were told to end while the student answers
        return whole(context, form, device)

    monkeypatch.setattr(evaluate.tasks, "whole_model", noting)
    with pytest.raises(PreemptedError):
        evaluate.run(stopped)
    again = open_it()
    evaluate.run(again)
    assert made == ["teacher", "stitched", "stitched"]
    undisturbed = open_it(store="other")
    evaluate.run(undisturbed)
    assert results(again) == results(undisturbed)


def test_a_task_that_is_not_there_is_named(open_it, tasks):
    context = open_it(tasks=tasks | {"names": ["colors"]})
    with pytest.raises(BadInputError, match=r"tasks\.names has colors, .* have colours, goes_on"):
        evaluate.run(context)


def test_nothing_is_left_behind(open_it, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    evaluate.run(open_it())
    assert list((tmp_path / "tmp").iterdir()) == []
