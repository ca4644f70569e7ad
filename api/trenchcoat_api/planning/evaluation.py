"""What the evaluation measures: sets of sequences, forms of the model, passes over the weights."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from trenchcoat_api.decode_state import decode_state
from trenchcoat_api.evaluation_states import IN_MEMORY_BYTES
from trenchcoat_api.phases import adapts_teacher, transfer_epochs
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.spec import Form
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import Stage

_TEACHER_AND_STUDENTS = 4
"""Teacher, untrained student, after LoRA by Cria, stitched."""


class ProbeLengths(NamedTuple):
    """The lengths of a test of recall."""

    distances: tuple[int, ...]
    factor: int
    """Between further distances."""
    around: int
    """Tokens of a sample besides the distance."""

    def up_to(self, most: int) -> list[int]:
        """Tokens of the samples of every distance that fits."""
        found = list(self.distances)
        while found[-1] * self.factor + self.around <= most:
            found.append(found[-1] * self.factor)
        return [distance + self.around for distance in found if distance + self.around <= most]


PROBES = (
    ProbeLengths((40, 256, 1024), 4, 192),
    ProbeLengths((64, 256, 1024), 4, 160),
    ProbeLengths((64, 256, 1024), 4, 192),
    ProbeLengths((100, 400, 800, 1600, 3500), 2, 380),
)
"""Copying, association, induction and pass keys, whose tokens around go by the tokenizer: about as many."""


class MeasuredSet(NamedTuple):
    """Sequences of one length, each run in so many forms of the model."""

    sequences: int
    length: int
    forms: int

    @property
    def states(self) -> int:
        """Hidden states of all forms, in tokens."""
        return self.sequences * self.length * self.forms


def evaluation_sets(outline: Outline) -> list[MeasuredSet]:
    """Held-out text at every length that fits, and the tests of recall at every distance that does.

    No set is empty: a text too short to hold anything out is left to the evaluation to refuse.
    """
    spec, length = outline.spec, outline.length
    positions = outline.model.positions
    multiples = [
        multiple
        for multiple in sorted(spec.evaluate.length_multiples)
        if multiple <= outline.held_out and (positions is None or multiple * length <= positions)
    ]
    longest = length * max((1, *multiples))
    teachers = 1 + adapts_teacher(spec) + _has_rival(outline, longest)
    forms = teachers + _TEACHER_AND_STUDENTS - 1 + bool(transfer_epochs(spec))
    parts = 2 if spec.attention.form is Form.LOLCATS else 0
    found = [MeasuredSet(outline.held_out, length, forms + parts)]
    found += [MeasuredSet(outline.held_out // multiple, length * multiple, forms) for multiple in multiples]
    if spec.evaluate.other_text is not None:
        count = max(1, spec.evaluate.other_text.tokens // length)
        found.append(MeasuredSet(count, length, teachers + 1))
    if spec.evaluate.recall_samples:
        most = length * max((1, *spec.evaluate.length_multiples))
        bound = min(most if positions is None else min(most, positions), outline.held_out * length)
        sizes = [size for probe in PROBES for size in probe.up_to(bound)]
        found += [MeasuredSet(spec.evaluate.recall_samples, size, teachers + 1) for size in sizes]
    return [item for item in found if item.sequences]


def _has_rival(outline: Outline, longest: int) -> bool:
    decode = decode_state(outline.spec, outline.facts)
    return bool(decode.student_layers) and decode.equal_window + 1 < longest


def passes(outline: Outline) -> list[list[MeasuredSet]]:
    """The sets by the readings of the Crias' weights: a pass holds no more than the largest set."""
    sets = evaluation_sets(outline)
    largest = max((item.states for item in sets), default=0)
    found: list[list[MeasuredSet]] = []
    for item in sets:
        if found and sum(other.states for other in found[-1]) + item.states <= largest:
            found[-1].append(item)
        else:
            found.append([item])
    return found


def reads_of_weights(outline: Outline) -> int:
    """How often the Crias' weights are read, by all pods together: by each in every pass that it is in."""
    each = stage_size(outline.spec, Stage.EVALUATE).processes_per_node
    return sum(-(-ranks // each) for ranks in _busy_ranks(outline))


def reads_of_trained(outline: Outline) -> int:
    """How often what Crias have trained is read: by each rank in every pass that it is in."""
    return sum(_busy_ranks(outline))


def _busy_ranks(outline: Outline) -> list[int]:
    """How many ranks have batches, in each pass; the first ones."""
    ranks = stage_size(outline.spec, Stage.EVALUATE).ranks
    return [
        min(ranks, sum(batches(outline, item) * item.forms for item in group)) for group in passes(outline)
    ]


def share_read(outline: Outline) -> float:
    """What one rank reads of the weights in a pass, at most: those of a pod each read a layer at a time."""
    each = stage_size(outline.spec, Stage.EVALUATE).processes_per_node
    turns = sum(-(-len(cria.layers) // each) for cria in outline.crias)
    return turns / sum(len(cria.layers) for cria in outline.crias)


def batch_sequences(outline: Outline, item: MeasuredSet) -> int:
    """Sequences of a set that are run at once."""
    tokens = outline.spec.evaluate.batch_size * outline.length
    return min(max(1, tokens // item.length), item.sequences)


def batches(outline: Outline, item: MeasuredSet) -> int:
    """Batches of a set in one form of the model."""
    return -(-item.sequences // batch_sequences(outline, item))


def longest_share(outline: Outline, group: list[MeasuredSet], cost: Callable[[MeasuredSet], float]) -> float:
    """What the rank that has most to do of a pass takes, where a batch of a set takes `cost`.

    Batches are dealt one after another, over all sets and forms.
    """
    counts = [batches(outline, item) * item.forms for item in group]
    shares = [0.0] * min(stage_size(outline.spec, Stage.EVALUATE).ranks, sum(counts))
    dealt = 0
    for item, count in zip(group, counts, strict=True):
        all_have, more = divmod(count, len(shares))
        for place in range(len(shares)):
            shares[(dealt + place) % len(shares)] += (all_have + (place < more)) * cost(item)
        dealt += count
    return max(shares)


def stored_states(outline: Outline, sets: Iterable[MeasuredSet] | None = None) -> int:
    """Bytes of all states of these sets, or of all, that are in the store alone.

    They are read and written once for every Cria.
    """
    each = outline.facts.hidden_size * outline.item
    ranks = stage_size(outline.spec, Stage.EVALUATE).ranks
    found = 0
    for item in evaluation_sets(outline) if sets is None else sets:
        own = -(-batches(outline, item) // ranks) * batch_sequences(outline, item)
        if min(own, item.sequences) * item.length * each > IN_MEMORY_BYTES:
            found += item.states * each
    return found
