"""Tests of recall: what stood some tokens before, in held-out text, is asked for again.

Four probes, alike for all forms of the model and made from a seed. They keep what is to be remembered away
from the first tokens, which a window may see from everywhere, and put it at changing places, so that it falls
on every place of a terrace's blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from trenchcoat_api.results import Probe

from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric

BEFORE = 64
"""Tokens of held-out text before anything that is to be remembered, at least."""
SHIFT = 64
"""And up to so many more."""
COPIED = 64
"""Tokens to copy; as many as the distance where that is shorter."""
UNCOUNTED = 4
"""Tokens of the second showing that tell that it is one."""
PAIRS = 16
"""Keys with their values to associate."""
SCATTERED = 8
"""Pairs of tokens to induce from, as many tokens apart as there are of them."""
DEPTHS = 4
"""Places of the number, evenly over `SPREAD` tokens."""
SPREAD = 256
DIGITS = 5
TOLD = "\n\nThe pass key is {key}. Remember it: {key} is the pass key.\n\n"
ASKED = "\n\nWhat is the pass key? The pass key is"
COPY_DISTANCES = (40, 256, 1024)
"""And four times as much, again and again."""
PAIR_DISTANCES = (64, 256, 1024)
"""And four times as much, again and again."""
PASSKEY_DISTANCES = (100, 400, 800, 1600, 3500)
"""And twice as much, again and again."""

Encode = Callable[[str], list[int]]
"""Token ids of a text, without marks at its begin or end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallText:
    """What samples are made of."""

    stream: np.ndarray
    """Token ids of the held-out text, one after another."""
    special: frozenset[int]
    """Ids that are no text."""
    longest: int
    """Tokens that a sample may have."""
    samples: int
    seed: int
    forms: tuple[str, ...]
    """Names of the variants to measure."""


class Planted(NamedTuple):
    """What is put into a sample at one place, and again at another: arrays of equal length."""

    told: np.ndarray
    """Token ids; `TEXT` where the text stays."""
    asked: np.ndarray
    counted: np.ndarray
    """Which of the asked ones count, bool."""


TEXT = -1
Plant = Callable[[np.random.Generator, np.ndarray], Planted]
"""Makes one of random numbers and the ids to choose from."""


def copy_sets(text: RecallText) -> Iterator[EvaluationSet]:
    """Yield the test of copying at every distance that fits.

    `COPIED` tokens are shown twice, the second showing beginning a distance after the first: random ones, of
    those that the held-out text has, none twice where there are enough.
    """
    for distance in _distances(COPY_DISTANCES, 4, text.longest):
        run = min(COPIED, distance)

        def plant(source: np.random.Generator, known: np.ndarray, run: int = run) -> Planted:
            copied = _draw(source, known, run)
            return Planted(copied, copied, np.arange(run) >= UNCOUNTED)

        yield from _planted(text, Probe.COPY, distance, run, plant)


def association_sets(text: RecallText) -> Iterator[EvaluationSet]:
    """Yield the test of association at every distance that fits.

    Multi-query associative recall (Zoology, arXiv 2312.04927) for models that were never trained on it:
    random tokens as keys, each followed by its value, and a distance later the same pairs in another order.
    The values count.
    """

    def plant(source: np.random.Generator, known: np.ndarray) -> Planted:
        pairs = _draw(source, known, 2 * PAIRS).reshape(PAIRS, 2)
        return Planted(pairs.ravel(), source.permutation(pairs).ravel(), np.arange(2 * PAIRS) % 2 == 1)

    for distance in _distances(PAIR_DISTANCES, 4, text.longest):
        yield from _planted(text, Probe.ASSOCIATION, distance, 2 * PAIRS, plant)


def induction_sets(text: RecallText) -> Iterator[EvaluationSet]:
    """Yield the test of induction at every distance that fits.

    Pairs of random tokens stand in the text, each by itself; a distance later the first of each stands there
    again, and what followed it the first time counts (arXiv 2209.11895). Nothing but that one token tells
    where to look.
    """

    def plant(source: np.random.Generator, known: np.ndarray) -> Planted:
        shown = np.full((SCATTERED, SCATTERED), TEXT, np.int64)
        shown[:, :2] = _draw(source, known, 2 * SCATTERED).reshape(SCATTERED, 2)
        return Planted(shown.ravel(), shown.ravel(), np.arange(SCATTERED**2) % SCATTERED == 1)

    for distance in _distances(PAIR_DISTANCES, 4, text.longest):
        yield from _planted(text, Probe.INDUCTION, distance, SCATTERED**2, plant)


def _planted(
    text: RecallText, probe: Probe, distance: int, span: int, plant: Plant
) -> Iterator[EvaluationSet]:
    """Yield samples in which `span` tokens are planted twice, `distance` apart; none if they do not fit."""
    length = BEFORE + SHIFT + distance + span
    if length > min(text.longest, len(text.stream)):
        return
    known = np.setdiff1d(np.unique(text.stream), list(text.special))
    source = np.random.default_rng(derived_seed(text.seed, probe.value, distance))
    samples, counts = _held_out(text, length, source)
    for sample, counted in zip(samples, counts, strict=True):
        first = BEFORE + int(source.integers(SHIFT + 1))
        planted = plant(source, known)
        for begin, tokens in ((first, planted.told), (first + distance, planted.asked)):
            place = sample[begin : begin + span]
            place[:] = np.where(tokens == TEXT, place, tokens)
        counted[first + distance : first + distance + span] = planted.counted
    yield _set(text, probe, distance, samples, counts)


def _draw(source: np.random.Generator, known: np.ndarray, count: int) -> np.ndarray:
    """Ids, none twice where there are enough."""
    return source.choice(known, count, replace=len(known) < count)


def passkey_sets(text: RecallText, encode: Encode) -> Iterator[EvaluationSet]:
    """Yield the test of remembering a number at every distance that fits.

    The distance is the number of tokens between the end of the sentence that tells it and the question.
    """
    for distance in _distances(PASSKEY_DISTANCES, 2, text.longest):
        source = np.random.default_rng(derived_seed(text.seed, "passkey", distance))
        keys = [str(source.integers(10 ** (DIGITS - 1), 10**DIGITS)) for _ in range(text.samples)]
        told = [encode(TOLD.format(key=key)) for key in keys]
        asked = [_question(encode, key) for key in keys]
        overhead = max(len(one) + len(other[0]) for one, other in zip(told, asked, strict=True))
        length = BEFORE + SPREAD + overhead + distance
        if length > min(text.longest, len(text.stream)):
            return
        samples, counts = _held_out(text, length, source)
        for index, (sample, counted) in enumerate(zip(samples, counts, strict=True)):
            first = BEFORE + index % DEPTHS * SPREAD // (DEPTHS - 1)
            sample[first : first + len(told[index])] = told[index]
            question, answer = asked[index]
            begin = first + len(told[index]) + distance
            end = begin + len(question)
            sample[begin:end] = question
            counted[end - answer : end] = True
        yield _set(text, Probe.PASSKEY, distance, samples, counts)


def _distances(known: tuple[int, ...], factor: int, longest: int) -> Iterator[int]:
    yield from known
    distance = known[-1] * factor
    while distance < longest:
        yield distance
        distance *= factor


def _held_out(text: RecallText, length: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the held-out text, and that nothing counts yet: [samples, length] each."""
    starts = source.integers(len(text.stream) - length + 1, size=text.samples)
    samples = np.stack([text.stream[start : start + length] for start in starts]).astype(np.int32)
    return samples, np.zeros(samples.shape, bool)


def _question(encode: Encode, key: str) -> tuple[list[int], int]:
    """Token ids of the question with its answer, and how many of them are the answer's."""
    bare, whole = encode(ASKED), encode(f"{ASKED} {key}")
    same = 0
    while same < len(bare) and bare[same] == whole[same]:
        same += 1
    return whole, len(whole) - same


def _set(
    text: RecallText, probe: Probe, distance: int, samples: np.ndarray, counts: np.ndarray
) -> EvaluationSet:
    return EvaluationSet(
        name=f"{probe}-{distance}",
        tokens=torch.from_numpy(samples),
        counts=torch.from_numpy(counts),
        metric=Metric.EXACT if probe is Probe.PASSKEY else Metric.RIGHT,
        forms=text.forms,
        probe=probe,
        distance=distance,
    )
