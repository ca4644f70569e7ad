"""Synthetic recall: told before it is asked, at all distances, and nothing is asked that cannot be known."""

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from trenchcoat_trainer.stages.stitch.batches import count_predicted
from trenchcoat_trainer.stages.stitch.recall import (
    ASKS,
    END,
    FARTHEST,
    IGNORED,
    NEAREST,
    SPAN,
    UNCOUNTED,
    Recall,
)

TOKENS = 1024
TEXT = ord("_")
IDS = range(0x4E00, 0x9E00)
"""What spans are made of: none of it stands in facts or in the text."""
NAME, DIGITS = r"(?P<name>[a-z]+ [a-z]+)", r"(?P<digits>\d{4,7})"


def pattern(text: str, end: str = "") -> re.Pattern[str]:
    """What finds a sentence of `ASKS`; a name or a number that stands twice in it is the same."""
    found = re.escape(text).replace(r"\{name\}", NAME, 1).replace(r"\{digits\}", DIGITS, 1)
    found = found.replace(r"\{name\}", "(?P=name)").replace(r"\{digits\}", "(?P=digits)")
    return re.compile(found + end)


KINDS = [(pattern(told), pattern(asked, rf" {DIGITS}{re.escape(END)}")) for told, asked in ASKS]


def encode(text: str) -> list[int]:
    """One token a character, so that places in tokens are places in text."""
    return [ord(character) for character in text]


def make(rows: int, share: float = 0.9, *, tokens: int = TOKENS, seed: int = 0, step: int = 0):
    """Text of nothing but `TEXT`, with recall put in: tokens, labels and counts."""
    text = torch.full((rows, tokens), TEXT)
    labels, counts = Recall(seed, encode, IDS).put_into(text, 0, step, share=share)
    return text, labels, counts


def texts(tokens: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in tokens.tolist()]


def spans(row: str) -> list[tuple[int, int, int]]:
    """Begin of both showings of every span, and its length."""
    runs = [(found.start(), found.group()) for found in re.finditer("[\u4e00-\u9dff]+", row)]
    first: dict[str, int] = {}
    twice = []
    for begin, run in runs:
        if run in first:
            twice.append((first[run], begin, len(run)))
        first.setdefault(run, begin)
    return twice


def test_a_share_of_the_sequences_has_it_and_the_others_are_untouched():
    tokens, labels, counts = make(400, 0.25)
    touched = (tokens != TEXT).any(1)
    assert 60 < touched.sum() < 140
    assert counts.sequences == touched.sum()
    assert (labels[~touched] == TEXT).all()


def told_and_asked(row: str) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """Every fact of a row, and its question."""
    for told, asked in KINDS:
        facts = {found["name"]: found for found in told.finditer(row)}
        for question in asked.finditer(row):
            yield facts[question["name"]], question


def test_every_fact_is_told_before_it_is_asked_and_no_name_stands_for_two():
    tokens, _, counts = make(100)
    facts = 0
    for row in texts(tokens):
        names = []
        for told, asked in told_and_asked(row):
            names.append(told["name"])
            assert told["digits"] == asked["digits"]
            assert NEAREST <= asked.start() - told.start() <= FARTHEST * TOKENS
        assert len(names) == len(set(names))
        facts += len(names)
    assert facts == counts.facts > 50


def test_there_are_facts_of_every_kind_and_none_of_a_test():
    rows = "".join(texts(make(200)[0]))
    assert all(told.search(rows) and asked.search(rows) for told, asked in KINDS)
    assert not re.search(r"pass ?key", rows, re.IGNORECASE)


def test_every_span_is_shown_twice():
    tokens, _, counts = make(100)
    found = [span for row in texts(tokens) for span in spans(row)]
    # Two that lie side by side look like one.
    assert 0.9 * counts.spans < len(found) <= counts.spans
    assert {length for *_, length in found} >= {SPAN[0], SPAN[1]}
    assert all(NEAREST <= second - first <= FARTHEST * TOKENS for first, second, _ in found)


def test_only_what_was_shown_before_is_to_be_predicted():
    tokens, labels, counts = make(100)
    put_in, counted = tokens != TEXT, labels != IGNORED
    assert (labels[counted] == tokens[counted]).all()
    assert counted[~put_in].all(), "the text itself is predicted as ever"
    assert counts.tokens == put_in.sum()
    assert counts.asked == (put_in & counted).sum() > 0
    for row, is_counted in zip(texts(tokens), counted.numpy(), strict=True):
        for told, asked in told_and_asked(row):
            answer = slice(asked.start("digits") - 1, asked.end())
            assert is_counted[answer].all()
            assert not is_counted[asked.start() : answer.start].any()
            assert not is_counted[told.start() : told.end()].any()
        for first, second, length in spans(row):
            assert not is_counted[first : first + length].any()
            assert not is_counted[second : second + UNCOUNTED].any()
            assert is_counted[second + UNCOUNTED : second + length].all()


def test_distances_are_near_and_far_and_there_is_about_one_in_384_tokens():
    tokens, _, counts = make(300, tokens=4096)
    distances = [second - first for row in texts(tokens) for first, second, _ in spans(row)]
    # Half are uniform, half uniform in the logarithm.
    farthest = FARTHEST * 4096
    for place in (200, 1000, 2000, 3000):
        even = (place - NEAREST) / (farthest - NEAREST)
        in_logarithm = math.log(place / NEAREST) / math.log(farthest / NEAREST)
        share = np.mean(np.array(distances) < place)
        assert share == pytest.approx((even + in_logarithm) / 2, abs=0.06), place
    items = counts.facts + counts.spans
    assert 0.85 < items / (counts.sequences * 4096 / 384) <= 1.05
    assert 0.4 < counts.facts / items < 0.6


def test_it_follows_from_seed_step_and_row_alone():
    (tokens, labels, counts), (again, others, count) = make(8, seed=5, step=3), make(8, seed=5, step=3)
    assert torch.equal(tokens, again)
    assert torch.equal(labels, others)
    assert counts == count
    assert torch.equal(make(3, seed=5, step=3)[0], tokens[:3])
    assert not torch.equal(make(8, seed=5, step=4)[0], tokens)
    assert not torch.equal(make(8, seed=6, step=3)[0], tokens)
    assert len({tuple(row) for row in tokens.tolist() if row != [TEXT] * TOKENS}) > 4


def test_a_sequence_too_short_for_anything_stays_as_it_is():
    tokens, labels, counts = make(20, tokens=48)
    assert (tokens == TEXT).all()
    assert torch.equal(tokens, labels)
    assert counts.sequences == counts.tokens == 0


def test_the_first_token_and_what_is_ignored_are_not_counted():
    labels = torch.tensor([[5, 6, IGNORED, 7], [IGNORED, 1, 2, 3]])
    assert count_predicted(labels) == 5
