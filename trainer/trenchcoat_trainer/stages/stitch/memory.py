"""What the stitch holds in a GPU's memory, where there is room, in place of doing it a second time.

Nothing here changes what is computed.
"""

from dataclasses import dataclass

import torch
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.data.layout import ITEM_BYTES
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig

SHARE = 0.8
"""Of the free memory that may be planned with; the rest is for fragments and what is not counted."""


@dataclass(frozen=True, slots=True)
class Held:
    """What stays in memory."""

    graph: bool
    """Every layer's graph from forward to backward; else the layers' inputs alone, and each runs twice."""
    weights: bool
    """All gathered weights, over a whole optimiser step; else each layer's while it computes."""


EVERYTHING_HELD = Held(graph=True, weights=True)
"""By a CPU, which runs small models alone."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on one rank."""

    layer: int
    """Weights of one decoder layer."""
    weights: int
    """All weights."""
    graph: int
    """One layer's graph for one micro-batch, the largest of the run."""
    layers: int
    """Number of layers, not bytes."""
    boundary: int
    """The hidden states of one micro-batch."""
    logits: int
    """Logits, their logarithms and gradients."""

    @classmethod
    def of(cls, spec: TrenchcoatSpec, student: TrenchcoatLlamaConfig) -> "Sizes":
        """Work them out for a spec and the student's shape."""
        item = ITEM_BYTES[spec.dtype]
        tokens = spec.stitch.largest_micro_batch * spec.data.sequence_length
        hidden, intermediate = student.hidden_size, student.intermediate_size
        layer = layer_parameters(student) * item
        outside = student.vocab_size * hidden * (1 if student.tie_word_embeddings else 2) * item
        return cls(
            layer=layer,
            weights=layer * student.num_hidden_layers + outside,
            # Counted tensor by tensor: norms keep 4 and 4 hidden states of 2 bytes, adapters' inputs 12,
            # attention with its features 12; the MLP keeps 3 intermediate states.
            graph=tokens * (32 * hidden + 6 * intermediate) * item // 2,
            layers=student.num_hidden_layers,
            boundary=tokens * hidden * item,
            logits=tokens * student.vocab_size * (12 + 2 * item),
        )


def layer_parameters(student: TrenchcoatLlamaConfig) -> int:
    """Return how many parameters a decoder layer's matrices have."""
    heads = 2 * (student.num_attention_heads + student.num_key_value_heads) * student.head_dim
    return int(student.hidden_size * (heads + 3 * student.intermediate_size))


def decide(sizes: Sizes, free: float, world_size: int) -> Held:
    """Decide for a GPU with `free` bytes; holding the graph saves more time, so it comes first."""
    room = SHARE * free - sizes.weights / world_size - 2 * sizes.layer - sizes.logits
    graph = room >= sizes.layers * sizes.graph
    room -= sizes.layers * (sizes.graph if graph else sizes.boundary) + sizes.graph
    # One rank alone has all weights as its partition.
    return Held(graph=graph, weights=world_size == 1 or room >= sizes.weights)


def choose(spec: TrenchcoatSpec, student: TrenchcoatLlamaConfig, device: torch.device) -> Held:
    """Decide for the device of a rank alone."""
    if device.type != "cuda":
        return EVERYTHING_HELD
    return decide(Sizes.of(spec, student), float(torch.cuda.mem_get_info(device)[0]), 1)
