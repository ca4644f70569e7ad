"""What is measured of one run, and what cannot be and why."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from trenchcoat_api.decode_state import DecodeState
from trenchcoat_api.phases import why_not_adapted
from trenchcoat_api.results import ModelForm, Probe
from trenchcoat_api.spec import AdaptedTeacher

from trenchcoat_trainer.checkpoints.stored_tokenizer import stored_tokenizer
from trenchcoat_trainer.data import TokenData
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.sources.encoding import Encoder
from trenchcoat_trainer.sources.other_text import FIELD, other_sequences
from trenchcoat_trainer.stages.evaluate.recall import (
    RecallText,
    association_sets,
    copy_sets,
    induction_sets,
    passkey_sets,
)
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet, text_set
from trenchcoat_trainer.stages.evaluate.variants import (
    ADAPTED,
    TEACHER,
    TRANSFER,
    WINDOWED,
    Variant,
    parts_of,
    stages_of,
)

COMPARED_FORMS = (
    ModelForm.TEACHER,
    ModelForm.ADAPTED_TEACHER,
    ModelForm.WINDOWED_TEACHER,
    ModelForm.STITCHED,
)
"""Those that are worth comparing in all that is measured."""


@dataclass(slots=True)
class EvaluationPlan:
    """Sets, the forms that are measured on them, and what is left out."""

    sets: list[EvaluationSet]
    variants: list[Variant]
    """The parts of the last student not among them."""
    parts: tuple[Variant, ...] = ()
    """The last student with a part of its attention alone."""
    left_out: list[str] = field(default_factory=list)
    """In sentences."""


def make_plan(context: StageContext, config: TrenchcoatLlamaConfig, decode: DecodeState) -> EvaluationPlan:
    """Decide from the spec, the held-out text and the teacher's positions.

    Raises:
        BadInputError: there is no held-out text.
    """
    data = TokenData(context, "held_out")
    if data.sequences == 0:
        raise BadInputError(
            "no held-out sequence to measure perplexity on: raise spec.data.heldOutPercent or "
            "spec.data.heldOutTokens, give more text, or set spec.evaluate.enabled to false"
        )
    held_out = data.read(0, data.sequences)
    multiples, left_out = _multiples(context, config, data.sequences)
    variants = list(stages_of(config))
    if TRANSFER not in variants:
        left_out.append(
            "the student after attention transfer: its attention has nothing to train there, so it is the "
            "untrained one"
        )
    teachers = [TEACHER]
    if why_not := why_not_adapted(context.spec):
        if context.spec.evaluate.adapted_teacher is AdaptedTeacher.NEVER:
            why_not += ", or training it failed"  # which leaves the same evaluation
        left_out.append(f"the adapted teacher: {why_not}")
    else:
        teachers.append(ADAPTED)
    longest = max((1, *multiples)) * data.sequence_length
    if decode.equal_window + 1 < longest and decode.student_layers:
        teachers.append(WINDOWED)
    else:
        left_out.append(_no_rival(decode, longest))
    variants = [*teachers, *(variant for variant in variants if variant is not TEACHER)]
    forms = [variant.name for variant in variants]
    parts = parts_of(config)
    sets = [text_set(held_out, 1, [*forms, *(part.name for part in parts)])]
    sets += [text_set(held_out, multiple, forms) for multiple in multiples]
    compared = [form for form in COMPARED_FORMS if form in forms]
    sets += _other_text(context, config, compared)
    sets += _recall(context, config, held_out, compared, left_out)
    return EvaluationPlan(sets, variants, parts, left_out)


def _multiples(
    context: StageContext, config: TrenchcoatLlamaConfig, sequences: int
) -> tuple[list[int], list[str]]:
    """The multiples of the sequence length that can be measured, and why others cannot."""
    length, positions = context.spec.data.sequence_length, config.max_position_embeddings
    multiples, left_out = [], []
    for multiple in sorted(context.spec.evaluate.length_multiples):
        tokens = multiple * length
        if tokens > positions:
            left_out.append(f"perplexity at {tokens} tokens: the teacher has {positions} positions")
        elif multiple > sequences:
            left_out.append(
                f"perplexity at {tokens} tokens: the held-out text has {sequences * length} "
                "(spec.data.heldOutTokens)"
            )
        else:
            multiples.append(multiple)
    return multiples, left_out


def _no_rival(decode: DecodeState, longest: int) -> str:
    if not decode.student_layers:
        return "the teacher cut to a window: every layer keeps softmax attention"
    return (
        f"the teacher cut to a window: at the student's bytes of state it sees {decode.equal_window} tokens, "
        f"which is all of the {longest} that are evaluated; a plain key/value cache is no larger there"
    )


def _other_text(
    context: StageContext, config: TrenchcoatLlamaConfig, forms: list[str]
) -> list[EvaluationSet]:
    """The text of another kind, where the spec names one."""
    asked = context.spec.evaluate.other_text
    if asked is None:
        return []
    tokenizer = stored_tokenizer(context)
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id)
    tokens = other_sequences(asked, context.store, encoder, context.spec.data.sequence_length)
    if tokens.max() >= config.vocab_size:
        raise BadInputError(
            f"the tokenizer makes the id {tokens.max()} of {FIELD} {asked.source}, but the teacher's "
            f"embedding has {config.vocab_size} rows: the tokenizer belongs to another model"
        )
    # With its digest, for what an earlier attempt measured counts for the same text alone.
    name = f"other-{hashlib.sha256(tokens.tobytes()).hexdigest()[:8]}"
    text = text_set(torch.from_numpy(tokens), 1, forms)
    return [replace(text, name=name, is_other=True)]


def _recall(
    context: StageContext,
    config: TrenchcoatLlamaConfig,
    held_out: torch.Tensor,
    forms: list[str],
    left_out: list[str],
) -> list[EvaluationSet]:
    """The tests of recall that fit; adds to `left_out` why others do not."""
    settings = context.spec.evaluate
    if not settings.recall_samples:
        left_out.append("recall: spec.evaluate.recallSamples is 0")
        return []
    multiple = max((1, *settings.length_multiples))
    tokenizer = stored_tokenizer(context)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    text = RecallText(
        stream=held_out.flatten().numpy(),
        special=frozenset(tokenizer.all_special_ids),
        longest=min(multiple * context.spec.data.sequence_length, config.max_position_embeddings),
        samples=settings.recall_samples,
        seed=context.spec.seed,
        forms=tuple(forms),
    )
    found = {
        Probe.COPY: list(copy_sets(text)),
        Probe.ASSOCIATION: list(association_sets(text)),
        Probe.INDUCTION: list(induction_sets(text)),
        Probe.PASSKEY: list(passkey_sets(text, encode)),
    }
    left_out += [
        f"recall, {probe}: samples do not fit into {text.longest} tokens, or into the held-out text of "
        f"{len(text.stream)}"
        for probe, sets in found.items()
        if not sets
    ]
    return [item for sets in found.values() for item in sets]
