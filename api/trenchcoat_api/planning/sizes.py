"""Parameters of a Llama's parts, and of what is trained on it: the one place that counts them."""

from collections.abc import Iterable

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.layer_kinds import LayerKind
from trenchcoat_api.spec import Attention, Form, KeyMaps, Lora, ProjectionName

_OF_LAYER = 9
"""Tensors of a decoder layer: seven matrices, two norms."""
FP32 = 4
"""Bytes of what is trained, always."""


def layer_parameters(model: ModelFacts) -> int:
    """Weights of one decoder layer."""
    attention = 2 * model.hidden_size * model.head_dim * (model.heads + model.kv_heads)
    mlp = 3 * model.hidden_size * model.intermediate_size
    return attention + mlp + 2 * model.hidden_size


def embedding_parameters(model: ModelFacts) -> int:
    """Weights of the embedding, and of the head, each."""
    return model.vocab_size * model.hidden_size


def is_tied(model: ModelFacts) -> bool:
    """Whether the head is the embedding, by the number of parameters."""
    outside = model.parameters - model.layers * layer_parameters(model)
    return outside < 1.5 * embedding_parameters(model)


def map_parameters(attention: Attention, kinds: Iterable[LayerKind], model: ModelFacts) -> int:
    """What attention transfer trains in layers of these kinds: maps of queries and keys, window factors."""
    if attention.form is not Form.LOLCATS:
        return 0
    key_maps = model.heads if attention.key_maps is KeyMaps.PER_QUERY_HEAD else model.kv_heads
    layer = (model.heads + key_maps) * model.head_dim * attention.feature_dim + model.heads
    return layer * sum(kind.form is not None for kind in kinds)


def adapter_parameters(lora: Lora, layers: int, model: ModelFacts) -> int:
    """Adapters on the projections of so many layers."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    widths = {
        ProjectionName.Q_PROJ: model.hidden_size + queries,
        ProjectionName.K_PROJ: model.hidden_size + keys,
        ProjectionName.V_PROJ: model.hidden_size + keys,
        ProjectionName.O_PROJ: queries + model.hidden_size,
    }
    return layers * lora.rank * sum(widths[projection] for projection in lora.target_modules)


def weight_tensors(model: ModelFacts) -> int:
    """Tensors of the model: its layers', the embedding, the final norm and the head."""
    return _OF_LAYER * model.layers + (2 if is_tied(model) else 3)


def map_tensors(attention: Attention, kinds: Iterable[LayerKind]) -> int:
    """Tensors that attention transfer trains."""
    if attention.form is not Form.LOLCATS:
        return 0
    return 3 * sum(kind.form is not None for kind in kinds)


def adapter_tensors(lora: Lora, layers: int) -> int:
    """Tensors of adapters: two for each projection."""
    return 2 * layers * len(lora.target_modules)
