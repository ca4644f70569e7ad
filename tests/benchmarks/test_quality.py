"""Tasks that benchmarks/quality makes of text, and the table of what its students said."""

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[2] / "benchmarks" / "quality"
FORMS = ("teacher", "adaptedTeacher", "stitched")
DRAWN = 20


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quality_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tasks, table = load("tasks"), load("table")


@pytest.fixture(name="texts")
def texts_fixture() -> list[str]:
    """Two documents of words, of which each comes back after 1000 to 2000 characters, or not."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), 6)) for _ in range(250)]
    return [" ".join(draw.choice(words, 2000)) + "." for _ in range(2)]


def drawn(questions) -> list[dict]:
    return list(islice(questions, DRAWN))


def test_the_right_passage_is_what_follows_and_the_others_are_not(texts: list[str]) -> None:
    for row in drawn(tasks.continuations(texts, np.random.default_rng(1))):
        assert len(set(row["choices"])) == tasks.CHOICES
        follows = [any(row["before"] + choice in text for text in texts) for choice in row["choices"]]
        assert [index for index, is_right in enumerate(follows) if is_right] == [row["answer"]]


def test_a_last_word_stands_far_before_and_not_near(texts: list[str]) -> None:
    for row in drawn(tasks.last_words(texts, np.random.default_rng(1))):
        assert row["word"] in row["before"][: tasks.FAR - tasks.NEAR]
        assert row["word"] not in row["before"][1 - tasks.NEAR :]
        assert any(f"{row['before']} {row['word']}" in text for text in texts)


def test_a_number_is_that_of_the_name(texts: list[str]) -> None:
    for row in drawn(tasks.lookups(texts, np.random.default_rng(1))):
        rows, asked = row["list"].split("\n\n")
        found = dict(line.split(": ") for line in rows.split("\n"))
        assert len(found) == tasks.ROWS
        assert found[asked.removesuffix(":")] == row["number"]


def test_passages_without_words_are_never_asked_for(texts: list[str]) -> None:
    drawing = ("+ " + "-" * 60 + " +\n| " + " " * 60 + " |\n") * 100
    text = texts[0][: tasks.FAR] + drawing + texts[1][: tasks.FAR]
    for row in drawn(tasks.continuations([text, "-" * 5000], np.random.default_rng(1))):
        for passage in (row["before"][-tasks.PASSAGE :], *row["choices"]):
            assert len(re.findall("[a-j]{2,}", passage)) >= tasks.WORDS


def test_a_border_is_one_space(texts: list[str]) -> None:
    spaced = [text.replace(" ", "  ") + text for text in texts]
    for make in (tasks.continuations, tasks.last_words):
        for row in drawn(make(spaced, np.random.default_rng(1))):
            assert row["before"] == row["before"].rstrip()


@pytest.fixture
def known(texts: list[str], tmp_path: Path, monkeypatch) -> Any:
    """The harness's own reading of the tasks, which are written below `tmp_path`."""
    reason = "lm-evaluation-harness is not installed: hack/python-env tasks"
    manager = pytest.importorskip("lm_eval.tasks", reason=reason).TaskManager
    monkeypatch.setattr(tasks, "held_out", lambda _: texts)
    monkeypatch.setattr("sys.argv", ["tasks.py", "--out", str(tmp_path), "--questions", str(DRAWN)])
    tasks.main()
    # A relative path of a task's questions is looked for in the working directory.
    monkeypatch.chdir(tmp_path)
    return manager(include_path=str(tmp_path), include_defaults=False)


def test_the_harness_asks_for_what_follows_a_space(known: Any, tmp_path: Path) -> None:
    """Also where the tokenizer has one token for the words on both sides of the border, without the space."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    asked = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("continuation", "last_word")
    }
    borders = [(row["before"], row["word"]) for row in asked["last_word"]]
    borders += [(row["before"], choice) for row in asked["continuation"] for choice in row["choices"]]
    tokenizer = joining([f" {before.split()[-1]}{after.split()[0]}" for before, after in borders])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=2 * tasks.FAR,
        )
    )
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=list(asked),
        task_manager=known,
        bootstrap_iters=0,
    )
    samples = {name: [sample["arguments"] for sample in found["samples"][name]] for name in asked}
    assert samples["last_word"] == [[(row["before"], f" {row['word']}")] for row in asked["last_word"]]
    assert samples["continuation"] == [
        [(row["before"], choice) for choice in row["choices"]] for row in asked["continuation"]
    ]


def test_an_answer_counts_with_the_space_before_it(known: Any) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM

    class Answering(LM):
        """Answers as models do: with a space first."""

        wrong = False

        def generate_until(self, requests, **_):
            return [f" {'no number' if self.wrong else request.doc['number']}" for request in requests]

        def loglikelihood(self, requests, **_):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    for wrong, score in ((False, 1.0), (True, 0.0)):
        model = Answering()
        model.wrong = wrong
        found = simple_evaluate(model=model, tasks=["lookup"], task_manager=known, bootstrap_iters=0)
        assert found["results"]["lookup"]["exact_match,stripped"] == score


def joining(words: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer to which each of `words` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    assert all(len(fast.encode(word)) == 1 for word in words)
    return fast


def test_questions_are_the_same_by_the_seed(texts: list[str]) -> None:
    for make in (tasks.continuations, tasks.last_words, tasks.lookups):
        first, same, other = (drawn(make(texts, np.random.default_rng(seed))) for seed in (1, 1, 2))
        assert first == same != other


def test_the_committed_table_is_that_of_the_results() -> None:
    runs = json.loads((FOLDER / "results" / "students_h200.json").read_text())["students"]
    chosen = {
        name: run for name, run in runs.items() if re.search(r"(window|constant), wsd.*8192, seed 0", name)
    }
    shown = table.table(chosen)
    assert "| perplexity at 1024 | 13.46 | 10.69 | 10.79 | 13.72 | 10.78 | 13.80 |" in shown
    assert "| bytes of state at 4096 tokens, MB | 94.4 | 94.4 | 26.6 | 26.6 | 10.5 | 10.5 |" in shown
    assert "other text" not in shown
    for name in ("texts", "tasks"):
        told = FOLDER / "results" / f"students_h200_{name}.json"
        shown = table.table(json.loads(told.read_text())["students"])
        assert told.with_suffix(".md").read_text().endswith(f"{shown}\n")


def test_other_texts_tasks_and_errors_have_lines() -> None:
    run = {
        "otherTexts": {"prose": {"perplexities": dict.fromkeys(FORMS, 20.0), "errors": {"stitched": 0.5}}},
        "summary": {
            "perplexities": {form: {"1024": 10.0, "2048": 9.0} for form in FORMS},
            "perplexity_errors": dict.fromkeys(FORMS, 0.25),
            "evaluation": {
                "sequenceLength": 1024,
                "positions": [{"first": 0, "last": 511, "perplexities": dict.fromkeys(FORMS, "11")}],
                "recall": {"copy-40": dict.fromkeys(FORMS, 0.5)},
                "recallErrors": {"copy-40": {"stitched": 0.1}},
                "tasks": [
                    {
                        "task": "lookup",
                        "metric": "exact_match",
                        "values": {"teacher": "0.5"},
                        "errors": {"teacher": "0.03"},
                    }
                ],
                "comparisons": [
                    {
                        "teacher": "adaptedTeacher",
                        "ratio": "1.01",
                        "ratioError": "0.002",
                        "wins": "0.1",
                        "ties": "0.6",
                    }
                ],
                "decode": {"student": {"1024": 1_000_000}, "teacher": {"1024": 2_000_000}},
            },
        },
    }
    assert table.table({"window": run}).split("\n") == [
        "| | teacher | adapted teacher | **window** |",
        "|---|---|---|---|",
        "| perplexity at 1024 | 10.00 ± 0.25 | 10.00 ± 0.25 | 10.00 ± 0.25 |",
        "| perplexity at 2048 | 9.00 | 9.00 | 9.00 |",
        "| perplexity on other text: prose | 20.00 | 20.00 | 20.00 ± 0.5 |",
        "| perplexity at positions 0 to 511 | 11.00 | 11.00 | 11.00 |",
        "| copy random tokens, 40 back | 0.50 | 0.50 | 0.50 ± 0.1 |",
        "| task lookup, exact_match | 0.500 ± 0.03 | - | - |",
        "| perplexity over the adapted teacher's | - | - | 1.0100 ± 0.002 |",
        "| wins against the adapted teacher | - | - | 0.10 |",
        "| ties with the adapted teacher | - | - | 0.60 |",
        "| bytes of state at 1024 tokens, MB | 2.0 | 2.0 | 1.0 |",
    ]


def test_teachers_that_differ_stand_apart() -> None:
    runs = json.loads((FOLDER / "results" / "students_h200.json").read_text())["students"]
    titles = [column.title for column in table.columns_of(runs) if column.form == "teacher"]
    assert titles[0] == "teacher"
    assert titles[1].startswith("teacher of 88M")
