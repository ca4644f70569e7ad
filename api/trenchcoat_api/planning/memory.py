"""Memory that a stage needs on each GPU and host: the one place for these formulas.

A stage's weights are exact. What its graph and work space take was measured with the fused steps at Llama
3.1 405B's shapes (benchmarks/step) and for the stitch at 88M parameters (benchmarks/stitch).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from trenchcoat_api import texts
from trenchcoat_api.evaluation_states import SPARE_BYTES, memory_bytes
from trenchcoat_api.packing import collected_at_once
from trenchcoat_api.phases import rolls
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.sizes import (
    FP32,
    adapter_parameters,
    embedding_parameters,
    is_tied,
    layer_parameters,
    map_parameters,
)
from trenchcoat_api.planning.storage import text_facts
from trenchcoat_api.selection import SEQUENCES, TOKENS
from trenchcoat_api.spec import Form, Objective, TeacherProducts
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import Stage

CONTEXT = 600_000_000
"""Of the CUDA context and the libraries: taken, not measured."""
STEP_STATES = 12.5
"""Hidden states per token of a layer's step, in spec.dtype: by reserved memory at 1024 to 32768 tokens."""
LOLCATS_STATES = 19.25
"""Likewise at the peak of LoLCATs' attention, which has states of blocks of tokens beside its features."""
MLP_ROWS = 4096
"""Tokens that go through an MLP at once where no gradient is kept."""
GRAPH_BYTES = 36
"""Of a layer's graph per token and column of the hidden state, in bf16: `block`."""
GRAPH_LIMIT = 12e9
"""A larger graph is computed twice in place of being held."""
LOGITS = 2**27
"""Logits that the evaluation computes at a time."""
REDUCE_BUCKET = 500_000_000
"""Parameters of DeepSpeed's bucket of gradients, which is there however few are trained."""
HOST_BASE = 4_000_000_000
"""Of a host process with torch, CUDA and the libraries loaded: taken, not measured."""
OBJECT = 32 * 1024 * 1024
"""Target size of a stored object of hidden states."""
PENDING = 20
"""Objects that the collection holds while they are written."""
READ_AHEAD = 16
"""Objects that a Cria holds of what it reads."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes, and what they are of."""

    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All together."""
        return sum(self.parts.values())


def gpu_need(outline: Outline, stage: Stage) -> Need | None:
    """What a stage needs on each of its GPUs, at least; None where it takes none."""
    if gpus_of(outline, stage) == 0:
        return None
    return Need({name: int(size) for name, size in _ON_GPU[stage](outline).items() if size})


def gpus_of(outline: Outline, stage: Stage) -> int:
    """GPUs of a stage, of one Cria alone."""
    return stage_size(outline.spec, stage).gpus


def ranks_of(outline: Outline, stage: Stage) -> int:
    """Processes that share a stage; one for each GPU, or for each pod where it takes none."""
    return stage_size(outline.spec, stage).ranks


def collected_layers(outline: Outline) -> int:
    """Layers that the collection runs on its slowest rank: none behind the last boundary.

    Where it rolls, a Job of its own makes one boundary, if the Cria whose place that was is complete.
    """
    if rolls(outline.spec):
        return outline.longest_cria
    return -(-outline.crias[-1].first // ranks_of(outline, Stage.COLLECT))


def collected_sequences(outline: Outline) -> int:
    """Sequences that a rank of the collection computes at once."""
    a_sequence = outline.length * outline.facts.hidden_size * outline.item
    in_object = min(max(1, OBJECT // a_sequence), outline.sequences)
    on_gpu = gpus_of(outline, Stage.COLLECT) > 0
    return collected_at_once(outline.spec.collect.batch_size, outline.length, in_object, on_gpu=on_gpu)


def _forward(outline: Outline, tokens: int) -> float:
    """A layer's work space where no gradient is kept."""
    facts = outline.facts
    return tokens * (6 * facts.hidden_size + 3 * facts.intermediate_size) * outline.item


def _step(outline: Outline, sequences: int) -> float:
    """A layer's work space in a step that trains layer by layer."""
    facts, tokens = outline.facts, sequences * outline.length
    values = STEP_STATES * tokens * facts.hidden_size + 3 * min(tokens, MLP_ROWS) * facts.intermediate_size
    if outline.spec.attention.form is Form.LOLCATS:
        values = max(values, LOLCATS_STATES * tokens * facts.hidden_size)
    return values * outline.item


def _collect(outline: Outline) -> dict[str, float]:
    tokens = collected_sequences(outline) * outline.length
    left = 1 if rolls(outline.spec) else -(-outline.boundaries // ranks_of(outline, Stage.COLLECT))
    # What enters and leaves a rank; boundaries where a graph leaves them, and of two batches on their way.
    held = 2 + 3 * left if gpus_of(outline, Stage.COLLECT) else 0
    return {
        "layers": collected_layers(outline) * outline.layer_bytes,
        "embedding": embedding_parameters(outline.facts) * outline.item,
        "hidden states": held * tokens * outline.facts.hidden_size * outline.item,
        "work space": _forward(outline, tokens),
        "context": CONTEXT,
    }


def _select(outline: Outline) -> dict[str, float]:
    tokens = min(outline.length, max(TOKENS, 2 * outline.spec.attention.window))
    states = SEQUENCES * tokens * outline.facts.hidden_size * outline.item
    return {
        "layer": outline.layer_bytes,
        "hidden states": 2 * states,
        "work space": _forward(outline, tokens),
        "context": CONTEXT,
    }


def _cria(outline: Outline) -> dict[str, float]:
    spec, layers = outline.spec, outline.longest_cria
    maps = max(
        map_parameters(spec.attention, outline.kinds_of(cria), outline.facts) for cria in outline.crias
    )
    adapters = adapter_parameters(spec.cria_lora.lora, layers, outline.facts)
    step = _step(outline, spec.transfer.micro_batch_size)
    if spec.cria_lora.epochs:
        step = max(step, _lora(outline, layers))
    is_float8 = spec.transfer.teacher_products is TeacherProducts.FLOAT8
    return {
        "layers": layers * outline.layer_bytes,
        "layers in float8": layers * outline.layer_bytes // 2 if is_float8 else 0,
        # Fusing a layer's weights holds it twice, before there is any graph.
        "work space": max(step, outline.layer_bytes),
        # Maps, their gradients, two moments and the best so far; adapters, gradients and moments.
        "trained": FP32 * (5 * maps + 4 * adapters),
        "context": CONTEXT,
    }


def _lora(outline: Outline, layers: int) -> float:
    settings = outline.spec.cria_lora
    base = _step(outline, settings.micro_batch_size)
    if settings.objective is not Objective.BLOCK:
        return base
    states = settings.micro_batch_size * outline.length * outline.facts.hidden_size
    graph = GRAPH_BYTES * states * outline.item / 2
    if layers * GRAPH_BYTES * states <= GRAPH_LIMIT:
        return max(base, layers * graph)
    return max(base, graph + layers * states * outline.item)


@dataclass(frozen=True, slots=True)
class StitchSizes:
    """Bytes on one rank of the stitch; as its own stage counts them before it decides what to hold."""

    layer: int
    """Weights of one decoder layer."""
    weights: int
    """All weights."""
    graph: int
    """One layer's graph for one micro-batch, the largest of the run."""
    boundary: int
    """The hidden states of one micro-batch."""
    logits: int
    """Logits, their logarithms and gradients."""

    @classmethod
    def of(cls, outline: Outline) -> "StitchSizes":
        """Work them out."""
        facts, item = outline.facts, outline.item
        tokens = outline.spec.stitch.largest_micro_batch * outline.length
        hidden = facts.hidden_size
        heads = 2 * (facts.heads + facts.kv_heads) * facts.head_dim
        layer = hidden * (heads + 3 * facts.intermediate_size) * item
        outside = embedding_parameters(facts) * (1 if is_tied(facts) else 2) * item
        return cls(
            layer=layer,
            weights=layer * facts.layers + outside,
            graph=tokens * (32 * hidden + 6 * facts.intermediate_size) * item // 2,
            boundary=tokens * hidden * item,
            logits=tokens * facts.vocab_size * (12 + 2 * item),
        )


def stitch_recomputes(outline: Outline, memory: int) -> bool:
    """Whether the stitch runs every layer's forward twice: its graphs do not fit into so many bytes."""
    sizes = StitchSizes.of(outline)
    ranks = ranks_of(outline, Stage.STITCH)
    room = 0.8 * (memory - CONTEXT) - sizes.weights / ranks - 2 * sizes.layer - sizes.logits
    return room < outline.facts.layers * sizes.graph


def _stitch(outline: Outline) -> dict[str, float]:
    """Where nothing is held that may be computed twice."""
    sizes, facts, ranks = StitchSizes.of(outline), outline.facts, ranks_of(outline, Stage.STITCH)
    adapters = adapter_parameters(outline.spec.stitch.lora, facts.layers, facts)
    maps = map_parameters(outline.spec.attention, outline.kinds, facts)
    gathered = 0 if ranks == 1 else 2 * sizes.layer + embedding_parameters(facts) * outline.item
    return {
        "weights": sizes.weights / ranks,
        "gathered layers": gathered,
        "boundaries": facts.layers * sizes.boundary,
        "work space": sizes.graph + sizes.logits,
        "gradient bucket": REDUCE_BUCKET * outline.item,
        "trained": adapters * outline.item + (3 * FP32 * adapters) / ranks + FP32 * maps,
        "context": CONTEXT,
    }


def _evaluate(outline: Outline) -> dict[str, float]:
    spec, facts = outline.spec, outline.facts
    longest = max((1, *spec.evaluate.length_multiples))
    tokens = max(spec.evaluate.batch_size, longest) * outline.length
    maps = max(map_parameters(spec.attention, outline.kinds_of(cria), facts) for cria in outline.crias)
    merged = FP32 * facts.hidden_size * facts.heads * facts.head_dim
    layers, embedding = outline.longest_cria * outline.layer_bytes, embedding_parameters(facts) * outline.item
    if stage_size(spec, Stage.EVALUATE).processes_per_node > 1:
        layers = max(layers, embedding)  # which one rank hands the others, before any layer
    rows = min(max(1, LOGITS // facts.vocab_size), tokens)
    logits = rows * facts.vocab_size * (3 * FP32 + outline.item)
    return {
        "layers": layers,
        "head": embedding,
        "maps": FP32 * maps,
        "work space": max(_forward(outline, tokens), logits, merged),
        "context": CONTEXT,
    }


_ON_GPU: dict[Stage, Callable[[Outline], dict[str, float]]] = {
    Stage.COLLECT: _collect,
    Stage.SELECT: _select,
    Stage.CRIA: _cria,
    Stage.STITCH: _stitch,
    Stage.ADAPT: _stitch,
    Stage.EVALUATE: _evaluate,
}


def reads_ahead(outline: Outline) -> bool:
    """Whether the evaluation reads one Cria's weights while it computes with another.

    It does where its host has the memory, by the limit that the spec sets for its pods if it sets one.
    """
    limit = outline.spec.pods.evaluate.resources.memory
    return limit is None or texts.quantity(limit) >= reading_ahead(outline)


def reading_ahead(outline: Outline) -> int:
    """Bytes of its host with which a pod of the evaluation reads ahead."""
    return _on_host(outline, Stage.EVALUATE, ahead=True).total


def host_need(outline: Outline, stage: Stage) -> Need:
    """What a pod of a stage needs of its host, without page cache."""
    return _on_host(outline, stage, ahead=stage is Stage.EVALUATE and reads_ahead(outline))


def _on_host(outline: Outline, stage: Stage, *, ahead: bool) -> Need:
    facts, stored = outline.facts, outline.model.stored_bytes
    embedding = embedding_parameters(facts) * outline.item
    layer = outline.layer_bytes
    matrix = facts.hidden_size * facts.intermediate_size * (stored + outline.item)
    processes = stage_size(outline.spec, stage).processes_per_node
    parts: dict[str, float] = {"process": HOST_BASE * processes}
    match stage:
        case Stage.COLLECT:
            parts["reading"] = processes * max(matrix, embedding_parameters(facts) * (stored + outline.item))
            parts["objects"] = processes * PENDING * max(OBJECT, outline.length * facts.hidden_size * 2)
        case Stage.SELECT:
            parts["reading"] = max(matrix, embedding_parameters(facts) * (stored + outline.item))
        case Stage.CRIA:
            parts["reading"] = max(layer, embedding)
            parts["objects"] = READ_AHEAD * max(OBJECT, outline.length * facts.hidden_size * outline.item)
        case Stage.STITCH | Stage.ADAPT:
            parts["reading"] = max(2 * layer, 2 * embedding)
        case Stage.EVALUATE:
            layers = outline.longest_cria if ahead else min(processes, outline.longest_cria)
            parts["reading"] = processes * 2 * embedding + layers * layer_parameters(facts) * stored
            parts["spare"] = processes * SPARE_BYTES if ahead else 0
            states = memory_bytes(outline.spec, facts, text_facts(outline))
            parts["hidden states"] = processes * states
        case Stage.EXPORT:
            parts["files"] = 3 * min(outline.spec.export.max_shard_bytes, facts.parameters * outline.item)
            parts["reading"] = max(layer, 2 * embedding)
        case _:
            pass
    if gpus_of(outline, stage) == 0 and stage in _ON_GPU:
        parts["model"] = sum(size for name, size in _ON_GPU[stage](outline).items() if name != "context")
    return Need({name: int(size) for name, size in parts.items() if size})
