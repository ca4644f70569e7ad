"""The teacher as a plan knows it: its shape, and how its checkpoint stores weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.planning.sizes import layer_parameters
from trenchcoat_api.spec import TrenchcoatSpec

_STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_NEEDED = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)
_LARGEST = 10**9
"""No size of a model is larger: what is, is a mistake, and would make a plan without end."""
_MOST_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A Llama by its configuration."""

    facts: ModelFacts
    stored_bytes: int
    """Bytes of one weight in the checkpoint."""
    positions: int | None = None
    """Positions that it was trained for; None where that is not known."""

    @classmethod
    def of_facts(cls, facts: ModelFacts, spec: TrenchcoatSpec) -> Self:
        """From what the tokenize stage told; the checkpoint is taken to be stored in spec.dtype."""
        return cls(facts, ITEM_BYTES[spec.dtype])

    @classmethod
    def of_config(cls, fields: Mapping[str, Any], source: str) -> Self:
        """From the fields of a config.json.

        Args:
            fields: the document.
            source: what messages call it.

        Raises:
            ValueError: it is not the configuration of a Llama.
        """
        if fields.get("model_type") != "llama":
            raise ValueError(
                f"{source}: model_type is {fields.get('model_type')!r}, not llama: give the config.json of a "
                "Llama"
            )
        layers, hidden, heads, mlp, vocabulary = (_size(fields, name, source) for name in _NEEDED)
        if layers > _MOST_LAYERS:
            raise ValueError(f"{source}: num_hidden_layers is {layers}, more than {_MOST_LAYERS}: correct it")
        kv_heads = heads
        if fields.get("num_key_value_heads") is not None:
            kv_heads = _size(fields, "num_key_value_heads", source)
        head_dim = hidden // heads if fields.get("head_dim") is None else _size(fields, "head_dim", source)
        facts = ModelFacts(
            layers=layers,
            hidden_size=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=mlp,
            vocab_size=vocabulary,
            parameters=0,
        )
        embeddings = vocabulary * hidden * (1 if fields.get("tie_word_embeddings") else 2)
        parameters = layers * layer_parameters(facts) + embeddings + hidden
        dtype = fields.get("dtype") or fields.get("torch_dtype") or "bfloat16"
        if not isinstance(dtype, str) or dtype not in _STORED:
            known = ", ".join(_STORED)
            raise ValueError(f"{source}: torch_dtype is {dtype!r}: write one of {known}")
        positions = fields.get("max_position_embeddings")
        return cls(
            facts.model_copy(update={"parameters": parameters}),
            _STORED[dtype],
            None if positions is None else _size(fields, "max_position_embeddings", source),
        )


def _size(fields: Mapping[str, Any], name: str, source: str) -> int:
    value = fields.get(name)
    if value is None:
        raise ValueError(f"{source} has no {name}: give a Llama's config.json")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{source}: {name} is {value!r}: write a whole number from 1 to {_LARGEST}")
    return value
