"""Seconds of every stage on given GPUs: the one place for these formulas.

A layer's pass takes its matrix products at the measured rate and its attention as measured, or what the host
needs to start it where that is longer; reading and writing take what the store gives to one process.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from trenchcoat_api.packing import packed
from trenchcoat_api.phases import adapter_epochs, job_stages, rolls, transfer_epochs
from trenchcoat_api.planning.evaluation import (
    MeasuredSet,
    batch_sequences,
    batches,
    longest_share,
    passes,
    share_read,
    stored_states,
)
from trenchcoat_api.planning.memory import (
    GRAPH_BYTES,
    GRAPH_LIMIT,
    collected_layers,
    collected_sequences,
    gpus_of,
    ranks_of,
    reads_ahead,
    stitch_recomputes,
)
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import HEAD_DIM, HEADS, Kind, PassRate, Rates
from trenchcoat_api.planning.sizes import embedding_parameters, layer_parameters
from trenchcoat_api.planning.storage import artifact_bytes, weight_bytes
from trenchcoat_api.selection import SEQUENCES
from trenchcoat_api.spec import Objective, Stitch
from trenchcoat_api.stages import INPUTS, Stage

_SHARPNESS = 4
"""How soon the longer of host and device alone counts, where both take about as long."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The GPUs that a plan is for."""

    kind: Kind
    rates: Rates
    crias: int
    """Crias at one time."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage takes."""

    stage: Stage
    job: float
    """Seconds of its longest Job."""
    wall: float
    """Seconds of all its Jobs, one after another where there are too few GPUs."""
    gpu_seconds: float
    """GPUs times seconds that they are held."""


@dataclass(frozen=True, slots=True)
class Times:
    """All stages, and the whole."""

    stages: tuple[StageTime, ...]
    wall: float
    """Seconds from the first stage to the last, along what waits for what."""
    finished: dict[Stage, float] = field(default_factory=dict)
    """When each is over, in seconds from the start."""


def times(outline: Outline, fleet: Fleet) -> Times:
    """Work them out."""
    wanted = job_stages(outline.spec)
    found: list[StageTime] = []
    finished: dict[Stage, float] = {}
    for stage in wanted:
        time = _crias(outline, fleet) if stage is Stage.CRIA else _single(outline, fleet, stage)
        found.append(time)
        after = (*INPUTS[stage], Stage.STITCH) if stage is Stage.ADAPT else INPUTS[stage]
        begins = max((finished[item] for item in after if item in finished), default=0.0)
        finished[stage] = begins + time.wall
    return Times(tuple(found), max(finished.values()), finished)


def stage_seconds(outline: Outline, fleet: Fleet, stage: Stage) -> float:
    """The one Job of a stage that is not the Crias'."""
    return _SECONDS[stage](outline, fleet)


def _single(outline: Outline, fleet: Fleet, stage: Stage) -> StageTime:
    seconds = stage_seconds(outline, fleet, stage)
    return StageTime(stage, seconds, seconds, seconds * gpus_of(outline, stage))


def _crias(outline: Outline, fleet: Fleet) -> StageTime:
    """Crias start as GPUs come free, in order; in a chain, once the one before has left what they read."""
    each = [cria_seconds(outline, fleet, len(cria.layers)) for cria in outline.crias]
    free = [0.0] * max(1, min(fleet.crias, len(each)))
    ready, chained = 0.0, rolls(outline.spec)
    for seconds, cria in zip(each, outline.crias, strict=True):
        begins = max(heapq.heappop(free), ready)
        heapq.heappush(free, begins + seconds)
        if chained:
            ready = begins + boundary_seconds(outline, fleet, len(cria.layers))
    return StageTime(Stage.CRIA, max(each), max(free), sum(each) * gpus_of(outline, Stage.CRIA))


def layer_seconds(
    rate: PassRate, outline: Outline, sequences: int, length: int, passes: float = 1.0
) -> float:
    """One layer over a micro-batch, `passes` times a forward's products."""
    facts = outline.facts
    products = passes * 2.0 * layer_parameters(facts) * sequences * length / (rate.tflops * 1e12)
    width = facts.heads * facts.head_dim / (HEADS * HEAD_DIM)
    device = products + sequences * width * rate.attention_seconds(length)
    host = rate.host_ms / 1e3
    longest = max(device, host)
    if longest == 0:
        return 0.0
    both = (device / longest) ** _SHARPNESS + (host / longest) ** _SHARPNESS
    return float(longest * both ** (1 / _SHARPNESS))


def _store(fleet: Fleet, size: float) -> float:
    return size / fleet.rates.store.bytes_per_second


def _tokenize(outline: Outline, fleet: Fleet) -> float:
    tokens = (outline.sequences + outline.held_out) * outline.length
    return fleet.kind.start(Stage.TOKENIZE) + tokens / fleet.rates.text.tokens_per_second


def _collect(outline: Outline, fleet: Fleet) -> float:
    ranks = ranks_of(outline, Stage.COLLECT)
    start = fleet.kind.start(Stage.COLLECT) + _store(fleet, weight_bytes(outline) / ranks)
    if not outline.boundaries:
        return start
    writing = _store(fleet, -(-outline.boundaries // ranks) * outline.boundary_bytes)
    return start + max(collect_seconds(outline, fleet), writing)


def collect_seconds(outline: Outline, fleet: Fleet) -> float:
    """Ranks compute one batch after another, each its layers; all are busy but at the ends."""
    size = collected_sequences(outline)
    batches = -(-outline.sequences // size)
    each = layer_seconds(fleet.kind.passes.forward, outline, size, outline.length)
    return (batches + ranks_of(outline, Stage.COLLECT) - 1) * collected_layers(outline) * each


def _shard(outline: Outline, fleet: Fleet) -> float:
    return fleet.kind.start(Stage.SHARD) + _store(fleet, 2 * weight_bytes(outline))


def _select(outline: Outline, fleet: Fleet) -> float:
    each = layer_seconds(fleet.kind.passes.forward, outline, 1, outline.length)
    computing = SEQUENCES * outline.facts.layers * each
    return fleet.kind.start(Stage.SELECT) + max(computing, _store(fleet, weight_bytes(outline)))


def _packed(outline: Outline, batch_size: int) -> int:
    """Sequences that a Cria computes at once; memory allows it wherever so many fill a GPU."""
    return packed(outline.length, min(batch_size, outline.sequences))


def transfer_seconds(outline: Outline, fleet: Fleet, layers: int) -> float:
    """All steps of attention transfer of a Cria of so many layers."""
    settings = outline.spec.transfer
    size = _packed(outline, settings.batch_size)
    batches, epochs = -(-outline.sequences // size), transfer_epochs(outline.spec)
    through = 0.0
    if rolls(outline.spec):  # one pass runs the last layer to its end, for the next Cria, by micro-batches
        rate = fleet.kind.passes.through if epochs else fleet.kind.passes.forward
        micro = min(settings.micro_batch_size, outline.sequences)
        micro_batches = -(-outline.sequences // micro)
        through = micro_batches * layers * layer_seconds(rate, outline, micro, outline.length)
        epochs = max(0, epochs - 1)
    # The last layer stops behind its attention.
    facts = outline.facts
    first = facts.hidden_size * facts.head_dim * (facts.heads + 2 * facts.kv_heads)
    passes = (layers - 1 + first / layer_parameters(facts)) / layers
    each = layer_seconds(fleet.kind.passes.transfer, outline, size, outline.length, passes)
    return through + epochs * batches * layers * each


def boundary_seconds(outline: Outline, fleet: Fleet, layers: int) -> float:
    """From the start of a Cria's Job until it has left what the next one reads."""
    size = min(outline.spec.transfer.micro_batch_size, outline.sequences)
    batches = -(-outline.sequences // size)
    rate = fleet.kind.passes.through if transfer_epochs(outline.spec) else fleet.kind.passes.forward
    computing = batches * layers * layer_seconds(rate, outline, size, outline.length)
    weights = layers * layer_parameters(outline.facts) * outline.model.stored_bytes
    start = fleet.kind.start(Stage.CRIA) + _store(fleet, weights)
    return start + max(computing, _store(fleet, 2 * outline.boundary_bytes))


def crias_at_once(outline: Outline, fleet: Fleet) -> int:
    """Crias that train at one time, at most: in a chain no more than begin while one goes on."""
    if not rolls(outline.spec):
        return fleet.crias
    layers = outline.longest_cria
    overlap = ceil(cria_seconds(outline, fleet, layers) / boundary_seconds(outline, fleet, layers))
    return max(1, min(fleet.crias, overlap))


def lora_seconds(outline: Outline, fleet: Fleet, layers: int) -> float:
    """All steps of LoRA by Cria."""
    settings = outline.spec.cria_lora
    size = _packed(outline, settings.batch_size)
    a_sequence = layers * GRAPH_BYTES * outline.length * outline.facts.hidden_size
    if settings.objective is Objective.BLOCK:  # holds the graph of all layers
        size = max(1, min(size, int(GRAPH_LIMIT // a_sequence)))
    batches = -(-outline.sequences // size) * settings.epochs
    if settings.objective is Objective.BLOCK:
        graph = size * a_sequence
        rate, passes = fleet.kind.passes.block, 3.0 if graph > GRAPH_LIMIT else 2.0
    else:
        rate, passes = fleet.kind.passes.layerwise, 1.0
    return batches * layers * layer_seconds(rate, outline, size, outline.length, passes)


def cria_seconds(outline: Outline, fleet: Fleet, layers: int) -> float:
    """One Cria's Job."""
    weights = layers * layer_parameters(outline.facts) * outline.model.stored_bytes
    start = fleet.kind.start(Stage.CRIA) + _store(fleet, weights)
    if not outline.boundaries and len(outline.crias) > 1:
        return start
    computing = transfer_seconds(outline, fleet, layers) + lora_seconds(outline, fleet, layers)
    return start + max(computing, _store(fleet, cria_reads(outline)))


def cria_reads(outline: Outline) -> float:
    """Hidden states that one Cria's Job reads, at most: its own boundary in every epoch, and the next."""
    if not outline.boundaries:
        return 0.0
    lora = outline.spec.cria_lora
    targets = 2 if lora.objective is Objective.BLOCK else 1
    return (transfer_epochs(outline.spec) + lora.epochs * targets) * outline.boundary_bytes


def _stitch(outline: Outline, fleet: Fleet) -> float:
    return _end_to_end(outline, fleet, Stage.STITCH)


def _adapt(outline: Outline, fleet: Fleet) -> float:
    return _end_to_end(outline, fleet, Stage.ADAPT)


def busy_ranks(outline: Outline) -> int:
    """Ranks of the stitch that have a micro-batch of their own in every step."""
    stitch = outline.spec.stitch
    return min(ranks_of(outline, Stage.STITCH), -(-stitch.batch_size // stitch.micro_batch_size))


def _end_to_end(outline: Outline, fleet: Fleet, stage: Stage) -> float:
    """Every rank reads its share of the weights before the steps."""
    stored = weight_bytes(outline) / ranks_of(outline, Stage.STITCH)
    return fleet.kind.start(stage) + _store(fleet, stored) + end_to_end_seconds(outline, fleet, stage)


def end_to_end_seconds(outline: Outline, fleet: Fleet, stage: Stage) -> float:
    """All steps of the stitch, or of the adapted teacher; each takes as many turns as the ranks need."""
    stitch = outline.spec.stitch
    epochs = stitch.epochs if stage is Stage.STITCH else adapter_epochs(outline.spec)
    steps = epochs * -(-outline.sequences // stitch.batch_size)
    long = round(float(stitch.long_sequences.share) * steps)
    seconds = (steps - long) * _step(outline, fleet, stitch, 1)
    if long:
        seconds += long * _step(outline, fleet, stitch, stitch.long_sequences.multiple)
    return seconds


def long_step_cost(outline: Outline, fleet: Fleet, multiple: int) -> float:
    """What a step of the stitch on sequences so many times as long takes, in parts of one on stored ones."""
    stitch = outline.spec.stitch
    return _step(outline, fleet, stitch, multiple) / _step(outline, fleet, stitch, 1)


def _step(outline: Outline, fleet: Fleet, stitch: Stitch, multiple: int) -> float:
    """An optimiser step on sequences that are so many times as long."""
    ranks = ranks_of(outline, Stage.STITCH)
    size = stitch.micro_batch_size if multiple == 1 else stitch.long_micro_batch_size
    turns = ceil(ceil(stitch.batch_size / (multiple * size)) / ranks)
    passes = 3.0 if stitch_recomputes(outline, fleet.kind.memory_bytes) else 2.0
    passes_of = fleet.kind.passes
    rate = passes_of.end_to_end if ranks > 1 else passes_of.end_to_end_alone
    layers = outline.facts.layers * layer_seconds(rate, outline, size, multiple * outline.length, passes)
    tokens = size * multiple * outline.length
    head = 2 * 2.0 * embedding_parameters(outline.facts) * tokens / (rate.tflops * 1e12)
    gathered = 0.0
    if ranks > 1 and fleet.rates.gather.bytes_per_second:
        weights = outline.facts.parameters * outline.item * (ranks - 1) / ranks
        gathered = passes * weights / fleet.rates.gather.bytes_per_second
    return turns * max(layers + head, gathered)


def _evaluate(outline: Outline, fleet: Fleet) -> float:
    return fleet.kind.start(Stage.EVALUATE) + evaluation_seconds(outline, fleet)


def evaluation_seconds(outline: Outline, fleet: Fleet) -> float:
    """Every pod reads all weights in each pass; every rank carries its share of the batches through them.

    Where memory has room for it, each Cria is read while the one before computes, also the first of the next
    pass: nothing computes while the first one of all is read.
    """
    rate, facts = fleet.kind.passes.evaluation, outline.facts

    def batch_seconds(item: MeasuredSet) -> float:
        layer = layer_seconds(rate, outline, batch_sequences(outline, item), item.length)
        tokens = item.sequences * item.length / batches(outline, item)
        return facts.layers * layer + 2.0 * embedding_parameters(facts) * tokens / (rate.tflops * 1e12)

    ranks, ahead = ranks_of(outline, Stage.EVALUATE), reads_ahead(outline)
    reading = _store(fleet, weight_bytes(outline) * share_read(outline))
    seconds = alone = reading / len(outline.crias) if ahead else 0.0
    for group in passes(outline):
        computing = longest_share(outline, group, batch_seconds)
        moving = _store(fleet, 2 * len(outline.crias) * stored_states(outline, group) / ranks)
        if ahead:
            seconds += max(computing, moving + reading - alone)
        else:
            seconds += reading + max(computing, moving)
        alone = 0.0
    return seconds


def _export(outline: Outline, fleet: Fleet) -> float:
    size = weight_bytes(outline) + artifact_bytes(outline, Stage.EXPORT)
    return fleet.kind.start(Stage.EXPORT) + _store(fleet, size)


_SECONDS: dict[Stage, Callable[[Outline, Fleet], float]] = {
    Stage.TOKENIZE: _tokenize,
    Stage.COLLECT: _collect,
    Stage.SHARD: _shard,
    Stage.SELECT: _select,
    Stage.STITCH: _stitch,
    Stage.ADAPT: _adapt,
    Stage.EVALUATE: _evaluate,
    Stage.EXPORT: _export,
}
