"""Bytes in the store: of every artifact when it is complete, of checkpoints, and how they add up over time.

Hidden states are stored at inner Cria boundaries only: the first Cria starts from token ids. Tokenizer files,
an export's code and reports are left out: they are a few megabytes at most.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from trenchcoat_api.artifacts import DataFacts
from trenchcoat_api.evaluation_states import pass_bytes
from trenchcoat_api.phases import job_stages, rolls, stages
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.sizes import (
    FP32,
    adapter_parameters,
    adapter_tensors,
    map_parameters,
    map_tensors,
    weight_tensors,
)
from trenchcoat_api.spec import Retention
from trenchcoat_api.stages import Stage

_TOKEN = 4
"""Bytes of a token id."""
_DOCUMENT = 8
"""Bytes that say where a document begins."""
_TOKEN_OBJECT, _TOKEN_OBJECT_HEADER = 1024 * 1024, 152
"""Target size of an object of token ids, and its header."""
_WEIGHT_HEADER, _ADAPTER_HEADER, _MAP_HEADER = 105, 125, 80
"""Bytes that a safetensors header takes for a tensor, by how long names are."""
ROLLING_BOUNDARIES = 2
"""Boundaries that a collection holds at a time if it goes Cria by Cria: what it reads and writes."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The store once a stage is complete."""

    after: Stage
    held: int
    """Bytes of all that is there then."""
    peak: int
    """The most that was there at once while it ran: what was there, its artifact and checkpoints."""


def activation_bytes(outline: Outline, at_a_time: int | None = None) -> int:
    """Hidden states that are stored at once: of all boundaries, or of so many at a time."""
    count = outline.boundaries if at_a_time is None else min(outline.boundaries, at_a_time)
    return count * outline.boundary_bytes


def weight_bytes(outline: Outline) -> int:
    """The teacher's weights as its checkpoint stores them."""
    headers = _WEIGHT_HEADER * weight_tensors(outline.facts)
    return outline.facts.parameters * outline.model.stored_bytes + headers


def cria_bytes(outline: Outline, index: int) -> int:
    """What one Cria leaves: maps and adapters."""
    spec, cria = outline.spec, outline.crias[index]
    kinds, lora, layers = outline.kinds_of(cria), spec.cria_lora.lora, len(cria.layers)
    maps = map_parameters(spec.attention, kinds, outline.facts)
    headers = _MAP_HEADER * map_tensors(spec.attention, kinds) + _ADAPTER_HEADER * adapter_tensors(
        lora, layers
    )
    return FP32 * (maps + adapter_parameters(lora, layers, outline.facts)) + headers


def _all_crias(outline: Outline) -> int:
    return sum(cria_bytes(outline, index) for index in range(len(outline.crias)))


def end_to_end_bytes(outline: Outline) -> int:
    """Adapters over the whole model."""
    lora, layers = outline.spec.stitch.lora, outline.facts.layers
    headers = _ADAPTER_HEADER * adapter_tensors(lora, layers)
    return FP32 * adapter_parameters(lora, layers, outline.facts) + headers


def _tokens(outline: Outline) -> int:
    each = max(1, _TOKEN_OBJECT // (_TOKEN * outline.length))
    objects = ceil(outline.sequences / each) + ceil(outline.held_out / each)
    sequences = outline.sequences + outline.held_out
    return (
        _TOKEN * sequences * outline.length + _DOCUMENT * outline.documents + _TOKEN_OBJECT_HEADER * objects
    )


def _export(outline: Outline) -> int:
    maps = map_parameters(outline.spec.attention, outline.kinds, outline.facts)
    tensors = weight_tensors(outline.facts) + map_tensors(outline.spec.attention, outline.kinds)
    return outline.facts.parameters * outline.item + FP32 * maps + _WEIGHT_HEADER * tensors


_LEFT: dict[Stage, Callable[[Outline], int]] = {
    Stage.TOKENIZE: _tokens,
    Stage.COLLECT: activation_bytes,
    Stage.SHARD: weight_bytes,
    Stage.CRIA: _all_crias,
    Stage.STITCH: end_to_end_bytes,
    Stage.ADAPT: end_to_end_bytes,
    Stage.EXPORT: _export,
}


def artifact_bytes(outline: Outline, stage: Stage) -> int:
    """What a stage leaves, all Crias together."""
    return _LEFT[stage](outline) if stage in _LEFT else 0


def checkpoint_bytes(outline: Outline, stage: Stage) -> int:
    """The most that a stage keeps in the store to go on from, which goes when it is complete."""
    if stage is Stage.CRIA:
        return sum(_cria_checkpoint(outline, index) for index in range(len(outline.crias)))
    if stage in (Stage.STITCH, Stage.ADAPT):
        return 3 * end_to_end_bytes(outline)  # adapters and AdamW's two moments
    if stage is Stage.EVALUATE:
        return evaluation_bytes(outline)
    return 0


def _cria_checkpoint(outline: Outline, index: int) -> int:
    spec, cria = outline.spec, outline.crias[index]
    maps = map_parameters(spec.attention, outline.kinds_of(cria), outline.facts)
    adapters = adapter_parameters(spec.cria_lora.lora, len(cria.layers), outline.facts)
    # Maps, the best so far and two moments; then the maps, adapters and two moments.
    return FP32 * max(4 * maps, maps + 3 * adapters)


def evaluation_bytes(outline: Outline) -> int:
    """Hidden states that the evaluation has at a time; where it takes long or they are many, in the store."""
    return pass_bytes(outline.spec, outline.facts, text_facts(outline))


def text_facts(outline: Outline) -> DataFacts:
    """What the tokenize stage would tell of the text."""
    return DataFacts(
        documents=0,
        sequences=outline.sequences,
        tokens=outline.tokens,
        held_out_documents=0,
        held_out_sequences=outline.held_out,
    )


def boundaries_at_once(outline: Outline, crias: int) -> int:
    """Boundaries that are stored at once, at most, where so many Crias train at one time."""
    if not rolls(outline.spec):
        return outline.boundaries
    # What the first of them reads, and what each of them leaves.
    return min(outline.boundaries, ROLLING_BOUNDARIES - 1 + crias)


def activations_at_once(outline: Outline, crias: int) -> int:
    """Bytes of them."""
    return activation_bytes(outline, boundaries_at_once(outline, crias))


def timeline(outline: Outline, crias: int = 1) -> list[Moment]:
    """The store after every stage; what spec.retention deletes goes when nothing reads it any more.

    Args:
        outline: the run.
        crias: how many train at one time.
    """
    wanted, held, moments = job_stages(outline.spec), 0, []
    deletes = outline.spec.retention is Retention.DELETE_INTERMEDIATE
    for stage in wanted:
        added = artifact_bytes(outline, stage)
        peak = held + added + checkpoint_bytes(outline, stage)
        if stage is Stage.CRIA and rolls(outline.spec):
            peak += activations_at_once(outline, crias)
        held += added
        if deletes:
            held -= _deleted(outline, stage, wanted)
        moments.append(Moment(stage, held, peak))
    return moments


def _deleted(outline: Outline, stage: Stage, wanted: Iterable[Stage]) -> int:
    collected = stage is Stage.CRIA and not rolls(outline.spec)
    gone = artifact_bytes(outline, Stage.COLLECT) if collected else 0
    if stage is list(wanted)[-1]:
        gone += artifact_bytes(outline, Stage.SHARD)
    return gone


def peak_bytes(outline: Outline) -> int:
    """The most that the store holds at once."""
    return max(moment.peak for moment in timeline(outline))


def written_bytes(outline: Outline) -> int:
    """All artifacts together, those that are deleted on the way among them."""
    return sum(artifact_bytes(outline, stage) for stage in stages(outline.spec))  # boundaries among them
