"""Tests of recall: what stood some tokens before, in held-out text, is asked for again.

Two probes, alike for teacher and student and made from a seed. Both keep what is to be remembered away from
the first tokens, which a window may see from everywhere, and put it at changing places, so that it falls on
every place of a terrace's blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from trenchcoat_api.results import Probe

from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, Metric

BEFORE = 64
"""Tokens of held-out text before anything that is to be remembered, at least."""
COPIED = 64
"""Tokens to copy; as many as the distance where that is shorter."""
UNCOUNTED = 4
"""Tokens of the second showing that tell that it is one."""
DEPTHS = 4
"""Places of the number, evenly over `SPREAD` tokens."""
SPREAD = 256
DIGITS = 5
TOLD = "\n\nThe pass key is {key}. Remember it: {key} is the pass key.\n\n"
ASKED = "\n\nWhat is the pass key? The pass key is"
COPY_DISTANCES = (40, 256, 1024)
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


def copy_sets(text: RecallText) -> Iterator[EvaluationSet]:
    """Yield the test of copying at every distance that fits.

    `COPIED` tokens are shown twice, the second showing beginning a distance after the first: random ones, of
    those that the held-out text has, none twice where there are enough.
    """
    known = np.setdiff1d(np.unique(text.stream), list(text.special))
    for distance in _distances(COPY_DISTANCES, 4, text.longest):
        run = min(COPIED, distance)
        length = BEFORE + COPIED + distance + run
        if length > min(text.longest, len(text.stream)):
            return
        source = np.random.default_rng(derived_seed(text.seed, "copy", distance))
        samples, counts = _held_out(text, length, source)
        for sample, counted in zip(samples, counts, strict=True):
            first = BEFORE + int(source.integers(COPIED + 1))
            copied = source.choice(known, run, replace=len(known) < run)
            for begin in (first, first + distance):
                sample[begin : begin + run] = copied
            counted[first + distance + UNCOUNTED : first + distance + run] = True
        yield _set(text, Probe.COPY, distance, samples, counts)


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
        metric=Metric.RIGHT if probe is Probe.COPY else Metric.EXACT,
        forms=text.forms,
        probe=probe,
        distance=distance,
    )
