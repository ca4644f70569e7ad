#!/usr/bin/env python3
"""Tasks for lm-evaluation-harness from the held-out documents: spec.evaluate.tasks, nothing to download.

    python benchmarks/quality/tasks.py --corpus build/quality --out build/quality/tasks

`continuation`: 600 characters, and which of four passages of the same document follows them (after HellaSwag,
arXiv 1905.07830, with passages of people only). `last_word`: a word that stands somewhere in the 2000
characters before it, but not in the last 800 (after LAMBADA, arXiv 1606.06031). `lookup`: a number from a
list of 60 names, which takes more tokens than a student's window. The same questions for everyone, by a seed.
"""

import argparse
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zstandard
from trenchcoat_trainer.stages.tokenize.reading import is_held_out

HELD_OUT_PERCENT = 2
QUESTIONS = 400
BEFORE, PASSAGE, CHOICES = 600, 120, 4
WORDS = 10
FAR, NEAR = 2000, 800
ROWS = 60
_WORD = re.compile(r"(?<= )[A-Za-z]{5,}(?=[ .,;:])")
_ANY_WORD = re.compile(r"[A-Za-z]{2,}")
COMMON = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0, "metadata": {"version": 1.0}}
TASKS: dict[str, dict[str, Any]] = {
    "continuation": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{before}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{before}}",
        # The space stands here, as the harness puts no target_delimiter before a target of this type.
        "doc_to_target": "{{' ' + word}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "lookup": {
        "output_type": "generate_until",
        "doc_to_text": "{{list}}",
        "doc_to_target": "{{number}}",
        "target_delimiter": " ",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        # An answer begins with the space that the question ends without.
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def main() -> None:
    """Write each task and its questions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("build/quality"), help="from corpus.py")
    parser.add_argument("--out", type=Path, default=Path("build/quality/tasks"), help="folder to write")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="questions of each task")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = held_out(arguments.corpus / "corpus.jsonl.zst")
    makers = {"continuation": continuations, "last_word": last_words, "lookup": lookups}
    for name, task in TASKS.items():
        made = makers[name](texts, np.random.default_rng([arguments.seed, len(name)]))
        rows = [json.dumps(next(made), ensure_ascii=False) for _ in range(arguments.questions)]
        (arguments.out / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        files = {"dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}}}
        (arguments.out / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name} | COMMON | files | task, sort_keys=False)
        )
        print(f"{name}: {len(rows)} questions", flush=True)


def held_out(corpus: Path) -> list[str]:
    """Return the documents that no training sees and that are long enough for every task."""
    with corpus.open("rb") as packed:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8")
        texts = [json.loads(line)["text"] for line in lines]
    return [text for text in texts if len(text) > 2 * FAR and is_held_out(text, HELD_OUT_PERCENT)]


def continuations(texts: list[str], draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield questions: what comes before, the passages to choose from, which of them is right."""
    while True:
        text = texts[draw.integers(len(texts))]
        starts = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text[BEFORE:-PASSAGE])]
        if len(starts) < CHOICES:
            continue
        chosen = BEFORE + draw.choice(starts, CHOICES, replace=False)
        passages = [text[start : start + PASSAGE] for start in chosen]
        if len(set(passages)) < CHOICES or abs(chosen[1:] - chosen[0]).min() < PASSAGE:
            continue
        before = text[chosen[0] - BEFORE : chosen[0]]
        if not all(map(has_words, (before[-PASSAGE:], *passages))):
            continue
        order = draw.permutation(CHOICES)
        yield {
            "before": before,
            "choices": [passages[index] for index in order],
            "answer": int(np.flatnonzero(order == 0)[0]),
        }


def has_words(passage: str) -> bool:
    """Whether a passage can be told from others: one of white space or of a drawn line cannot."""
    return len(_ANY_WORD.findall(passage)) >= WORDS


def last_words(texts: list[str], draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield questions: what comes before, without the space between, and the word."""
    while True:
        text = texts[draw.integers(len(texts))]
        words = [
            (match.start(), match.group())
            for match in _WORD.finditer(text)
            if match.start() > FAR
            and not text[match.start() - 2].isspace()
            and match.group() in text[match.start() - FAR : match.start() - NEAR]
            and match.group() not in text[match.start() - NEAR : match.start()]
        ]
        if words:
            start, word = words[draw.integers(len(words))]
            yield {"before": text[start - FAR : start - 1], "word": word}


def lookups(texts: list[str], draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield questions: a list of names and numbers with one of the names again, and its number."""
    words = sorted({match.group().lower() for text in texts for match in _WORD.finditer(text)})
    while True:
        names = draw.choice(words, ROWS, replace=False)
        numbers = draw.integers(1000, 10_000, ROWS)
        asked = draw.integers(ROWS)
        rows = "".join(f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True))
        yield {"list": f"{rows}\n{names[asked]}:", "number": str(numbers[asked])}


if __name__ == "__main__":
    main()
