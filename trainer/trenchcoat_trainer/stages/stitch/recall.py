"""Synthetic recall: what a sequence showed once is asked for again, far behind.

Ordinary text seldom asks for what stood hundreds of tokens before, so a student learns little of it. Here
facts are told and asked again, and spans of random tokens are shown twice, in place of tokens of the text.
Tests of recall use other words and other tokens; sentences of that kind are among those here.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from trenchcoat_trainer.seeds import derived_seed

IGNORED = -100
"""The label of a token that is not to be predicted."""
TOKENS_PER_ITEM = (384, 384)
"""There is one fact or span in so many tokens: uniform in the logarithm between them, by sequence."""
NEAREST = 40
FARTHEST = 0.9
"""From the begin of the first showing to that of the second: tokens, and share of the sequence. Half of the
distances are uniform between them, half are so in their logarithm."""
SPAN = (16, 64)
"""Tokens of a span, at least and at most."""
UNCOUNTED = 3
"""Tokens of a span's second showing that tell that it is one."""
DIGITS = (4, 7)
"""Of a fact's number, at least and at most."""
TRIES = 20
"""Places that are tried for an item before it is left out."""

ASKS = (
    ("\nNote: the {name} number is {digits}.\n", "\nQuestion: which is the {name} number? Answer:"),
    ("\n\nThe number of the {name} is {digits}.\n\n", "\n\nWhich number has the {name}? It is"),
    ("\nRemember that the {name} has the number {digits}.\n", "\nThe {name} has the number"),
    (" The {name} code is {digits}; keep it in mind.", " What is the {name} code? The {name} code is"),
    ("\n{name}: {digits}\n", "\n{name}:"),
    (" Use {digits} for the {name}. ", " For the {name}, use"),
    (
        "\n\nThe {name} has the code {digits}. Again: the code of the {name} is {digits}.\n\n",
        "\n\nTell the code of the {name}. The code of the {name} is",
    ),
    ("\n* {name} = {digits}\n", "\n* {name} ="),
)
"""A fact, and the question that its number answers."""
END = ".\n"
"""After an answer, which is to be told as well."""

_KINDS = (
    "amber autumn border bronze canal cedar cellar copper dawn desert eastern field forest garden glacier "
    "granite harbour hill island lower marble meadow mill northern ocean orchard outer river silver southern "
    "spring stone summer tower upper valley village western willow winter"
)
_THINGS = (
    "account archive barrel bridge cabinet carriage catalogue crate engine ferry gate house ledger lock "
    "locker locomotive mast order parcel permit platform pump room shelf signal station stove tablet ticket "
    "track tram truck vault vessel wagon warehouse well wharf window workshop"
)
_NAMES = [f"{kind} {thing}" for kind in _KINDS.split() for thing in _THINGS.split()]

Encode = Callable[[str], list[int]]
"""Token ids of a text, without marks at its begin or end."""


@dataclass(slots=True)
class RecallCounts:
    """What was put into the text."""

    sequences: int = 0
    """That have any of it."""
    facts: int = 0
    spans: int = 0
    tokens: int = 0
    """Of the text that were overwritten."""
    asked: int = 0
    """Those of them that had to be recalled."""

    def add(self, other: "RecallCounts") -> None:
        """Count `other` in."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True, slots=True)
class Item:
    """A fact or a span."""

    first: Sequence[int]
    """What is shown."""
    second: Sequence[int]
    """What is shown far behind it."""
    counted: int
    """From this token of the second showing on it is to be recalled."""
    is_fact: bool


class Recall:
    """Puts facts and spans into a share of the sequences."""

    def __init__(
        self,
        seed: int,
        encode: Encode,
        ids: Sequence[int],
        tokens_per_item: tuple[int, int] = TOKENS_PER_ITEM,
    ) -> None:
        """`ids` are those that spans are made of: all of the vocabulary that are text."""
        self._tokens_per_item = tokens_per_item
        self._seed = seed
        self._encode = encode
        self._ids = ids

    def put_into(
        self, tokens_BT: torch.Tensor, epoch: int, step: int, *, share: float
    ) -> tuple[torch.Tensor, RecallCounts]:
        """Overwrite tokens of a step's sequences; what is put where follows from the seed and the numbers.

        Args:
            tokens_BT: ids, int64, changed in place.
            epoch: number of the epoch.
            step: number of the optimiser step in it.
            share: of the sequences that carry recall.

        Returns:
            Labels, int64 [B, T]: the tokens, but `IGNORED` where nobody could know what stands there, which
            is in the first showing and where the second begins; and what was put in.
        """
        labels_BT, counts = tokens_BT.clone(), RecallCounts()
        for row, (tokens, labels) in enumerate(zip(tokens_BT.numpy(), labels_BT.numpy(), strict=True)):
            source = random.Random(derived_seed(self._seed, "recall", epoch, step, row))  # noqa: S311
            if source.random() < share:
                counts.add(self._fill(tokens, labels, source))
        return labels_BT, counts

    def _fill(self, tokens: np.ndarray, labels: np.ndarray, source: random.Random) -> RecallCounts:
        counts, is_free = RecallCounts(), np.ones(len(tokens), bool)
        wanted = max(1, round(len(tokens) / _log_uniform(source, *self._tokens_per_item)))
        for name in source.sample(_NAMES, min(wanted, len(_NAMES))):
            item = self._fact(name, source) if source.random() < 0.5 else self._span(source)
            places = _places(item, is_free, source)
            if places is None:
                continue
            for begin, shown, counted in zip(
                places, (item.first, item.second), (len(item.first), item.counted), strict=True
            ):
                tokens[begin : begin + len(shown)] = labels[begin : begin + len(shown)] = shown
                labels[begin : begin + counted] = IGNORED
                is_free[begin : begin + len(shown)] = False
            counts.facts += item.is_fact
            counts.spans += not item.is_fact
            counts.tokens += len(item.first) + len(item.second)
            counts.asked += len(item.second) - item.counted
        counts.sequences = int(counts.tokens > 0)
        return counts

    def _fact(self, name: str, source: random.Random) -> Item:
        digits = source.randint(*DIGITS)
        number = str(source.randrange(10 ** (digits - 1), 10**digits))
        told, asked = source.choice(ASKS)
        question = self._encode(asked.format(name=name))
        answered = self._encode(f"{asked.format(name=name)} {number}{END}")
        # Where a tokenizer joins the question's end with the answer's begin, that token is asked for too.
        same = next(
            (n for n, pair in enumerate(zip(question, answered, strict=False)) if pair[0] != pair[1]),
            len(question),
        )
        return Item(self._encode(told.format(name=name, digits=number)), answered, counted=same, is_fact=True)

    def _span(self, source: random.Random) -> Item:
        span = source.choices(self._ids, k=source.randint(*SPAN))
        return Item(span, span, counted=UNCOUNTED, is_fact=False)


def _places(item: Item, is_free: np.ndarray, source: random.Random) -> tuple[int, int] | None:
    """Where both showings begin; none where there is no room.

    The first token stays: it is the text's begin to many models, and every window may see it.
    """
    tokens = len(is_free)
    farthest = max(NEAREST, FARTHEST * tokens)
    for _ in range(TRIES):
        if source.random() < 0.5:
            distance = round(source.uniform(NEAREST, farthest))
        else:
            distance = round(_log_uniform(source, NEAREST, farthest))
        distance = max(distance, len(item.first))
        last = tokens - distance - len(item.second)
        if last < 1:
            continue
        begin = source.randint(1, last)
        again = begin + distance
        if is_free[begin : begin + len(item.first)].all() and is_free[again : again + len(item.second)].all():
            return begin, again
    return None


def _log_uniform(source: random.Random, low: float, high: float) -> float:
    return math.exp(source.uniform(math.log(low), math.log(high)))
