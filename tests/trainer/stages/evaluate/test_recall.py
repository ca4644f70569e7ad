"""Tests of recall: what is asked for stands where it is said to, and a model that recalls it is right."""

import dataclasses

import numpy as np
import pytest
from transformers import AutoTokenizer
from trenchcoat_trainer.stages.evaluate.recall import (
    BEFORE,
    RecallText,
    association_sets,
    copy_sets,
    induction_sets,
    passkey_sets,
)

TEXT = RecallText(
    stream=np.random.default_rng(0).integers(2, 290, 6000).astype(np.int32),
    special=frozenset({0, 1}),
    longest=4096,
    samples=8,
    seed=3,
    forms=("teacher",),
)


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture(scope="module")
def encode(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def change(**fields) -> RecallText:
    return dataclasses.replace(TEXT, **fields)


def begins(row: np.ndarray, part: list[int]) -> list[int]:
    """Where `part` begins in `row`."""
    windows = np.lib.stride_tricks.sliding_window_view(row, len(part))
    return np.flatnonzero((windows == part).all(1)).tolist()


def test_copies_stand_at_their_distances():
    found = {item.distance: item for item in copy_sets(TEXT)}
    assert list(found) == [40, 256, 1024]
    for distance, item in found.items():
        assert item.length <= 4096
        for tokens, counts in zip(item.tokens.numpy(), item.counts.numpy(), strict=True):
            asked = np.flatnonzero(counts)
            run = min(64, distance)
            assert len(asked) == run - 4 and (np.diff(asked) == 1).all()
            assert (tokens[asked] == tokens[asked - distance]).all()
            # The four before the first that counts are copied, too; nothing before them is.
            first = asked[0] - 4
            assert (tokens[first : first + 4] == tokens[first - distance : first - distance + 4]).all()
            assert first - distance >= BEFORE
            assert len(set(tokens[first : first + run])) == run


def test_copies_fall_on_many_places_of_a_block():
    (near, *_) = copy_sets(change(samples=64))
    assert len({int(row.nonzero()[0]) % 16 for row in near.counts}) > 8


def test_marks_of_the_tokenizer_are_not_copied():
    special = frozenset(range(250))
    for item in copy_sets(change(special=special)):
        copied = item.tokens[item.counts]
        assert (copied >= 250).all()


def test_the_number_is_told_and_asked_for_at_its_distance(encode, tokenizer):
    found = {item.distance: item for item in passkey_sets(TEXT, encode)}
    assert list(found) == [100, 400, 800, 1600, 3500]
    depths = set()
    for distance, item in found.items():
        for tokens, counts in zip(item.tokens.numpy(), item.counts.numpy(), strict=True):
            asked = np.flatnonzero(counts)
            key = tokenizer.decode(tokens[asked].tolist()).strip()
            assert len(key) == 5 and key.isdigit()
            told = encode(f"\n\nThe pass key is {key}. Remember it: {key} is the pass key.\n\n")
            question = encode(f"\n\nWhat is the pass key? The pass key is {key}")
            (first,), (second,) = begins(tokens, told), begins(tokens, question)
            assert second - (first + len(told)) == distance
            assert second + len(question) == asked[-1] + 1
            depths.add(first)
    assert len(depths) == 4 and min(depths) == BEFORE


def test_another_seed_asks_for_something_else(encode):
    (one, *_), (other, *_) = passkey_sets(TEXT, encode), passkey_sets(change(seed=4), encode)
    (again, *_) = passkey_sets(TEXT, encode)
    assert one.tokens.equal(again.tokens)
    assert not one.tokens.equal(other.tokens)


def test_what_does_not_fit_is_left_out(encode):
    short = change(longest=500)
    assert [item.distance for item in copy_sets(short)] == [40, 256]
    assert list(passkey_sets(short, encode)) == []
    little = change(stream=TEXT.stream[:1500])
    assert [item.distance for item in passkey_sets(little, encode)] == [100, 400, 800]


def test_distances_go_on_where_sequences_are_long():
    long = change(longest=40_000, stream=np.resize(TEXT.stream, 50_000), samples=1)
    assert [item.distance for item in copy_sets(long)] == [40, 256, 1024, 4096, 16384]


def test_pairs_come_again_in_another_order():
    found = {item.distance: item for item in association_sets(TEXT)}
    assert list(found) == [64, 256, 1024]
    orders = set()
    for distance, item in found.items():
        for tokens, counts in zip(item.tokens.numpy(), item.counts.numpy(), strict=True):
            asked = np.flatnonzero(counts)
            assert len(asked) == 16 and (np.diff(asked) == 2).all()
            first = asked[0] - 1 - distance
            told = {int(key): int(value) for key, value in tokens[first : first + 32].reshape(16, 2)}
            assert len(told) == 16 and first >= BEFORE
            assert [told[int(tokens[place - 1])] for place in asked] == tokens[asked].tolist()
            orders.add(tuple(list(told).index(int(tokens[place - 1])) for place in asked))
    assert len(orders) > 20


def test_what_followed_a_token_of_the_text_is_asked_for():
    found = {item.distance: item for item in induction_sets(TEXT)}
    assert list(found) == [64, 256, 1024]
    for distance, item in found.items():
        for tokens, counts in zip(item.tokens.numpy(), item.counts.numpy(), strict=True):
            asked = np.flatnonzero(counts)
            assert len(asked) == 8 and (np.diff(asked) == 8).all()
            assert (tokens[asked] == tokens[asked - distance]).all()
            assert (tokens[asked - 1] == tokens[asked - 1 - distance]).all()
            assert asked[0] - 1 - distance >= BEFORE
            # What stands between the pairs is the text's, and does not come again.
            between = np.concatenate([asked + step for step in range(1, 7)])
            assert (tokens[between] != tokens[between - distance]).mean() > 0.8


def test_pairs_fall_on_many_places_of_a_block():
    for make in (association_sets, induction_sets):
        (near, *_) = make(change(samples=64))
        assert len({int(row.nonzero()[0]) % 16 for row in near.counts}) > 8
