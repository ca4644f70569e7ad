"""What the evaluation measures: sets of sequences, forms of the model, passes over the weights."""

from typing import NamedTuple

from trenchcoat_api.decode_state import decode_state
from trenchcoat_api.evaluation_states import IN_MEMORY_BYTES
from trenchcoat_api.phases import adapts_teacher, transfer_epochs
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.spec import Form

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


def reads_of_weights(outline: Outline) -> int:
    """How often the Crias' weights are read: sets share a pass that holds no more than the largest."""
    sizes = [item.states for item in evaluation_sets(outline)]
    passes, held = 0, 0
    for size in sizes:
        if passes and held + size <= max(sizes):
            held += size
        else:
            passes, held = passes + 1, size
    return passes


def stored_states(outline: Outline) -> int:
    """Bytes of all states that are in the store alone: read and written once for every Cria."""
    each = outline.facts.hidden_size * outline.item
    return each * sum(
        item.states for item in evaluation_sets(outline) if item.states // item.forms * each > IN_MEMORY_BYTES
    )
