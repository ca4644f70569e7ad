"""What a run needs before anything starts: bytes and arithmetic, from the spec and the model's shape alone.

Hidden states are stored at inner Cria boundaries only: the first Cria starts from token ids. A layer's
arithmetic counts its matrix products; attention over 1024 tokens adds under 3 percent at 405B.
"""

from dataclasses import dataclass

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.layer_kinds import LayerKind, likely_kinds
from trenchcoat_api.spec import Attention, DType, Form, KeyMaps, TrenchcoatSpec

TERAFLOPS = 600.0
"""What one GPU of the H100 class sustains in bf16, where nobody says otherwise."""

_BYTES = {DType.BFLOAT16: 2, DType.FLOAT32: 4}


def layer_parameters(model: ModelFacts) -> int:
    """Weights of one decoder layer."""
    attention = 2 * model.hidden_size * model.head_dim * (model.heads + model.kv_heads)
    mlp = 3 * model.hidden_size * model.intermediate_size
    return attention + mlp + 2 * model.hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one run needs; bytes are exact for full sequences, hours are a lower bound."""

    crias: tuple[CriaRange, ...]
    tokens: int
    """Training tokens in full sequences."""
    activation_bytes: int
    """Hidden states at all inner boundaries."""
    weight_bytes: int
    """The teacher's weights in spec.dtype."""
    cria_weight_bytes: int
    """Weights of the largest Cria: what its GPU must hold besides one layer's graph."""
    collect_flop: float
    """Matrix products of the teacher's forward over all tokens."""
    cria_flop: float
    """Matrix products of all Crias, both phases."""
    decode_state_bytes: int
    """What decoding remembers of one sequence: lolcats' linear attention in fp32, or a window's keys and
    values in spec.dtype; all layers but those that keep softmax."""
    cache_tokens: int
    """Tokens from which a key/value cache in spec.dtype is larger than that state."""

    def gpu_hours(self, flop: float, teraflops: float) -> float:
        """Hours of one GPU that sustains `teraflops` TFLOP/s."""
        return flop / (teraflops * 1e12) / 3600


def _state_bytes(attention: Attention, kind: LayerKind, model: ModelFacts, key_bytes: int) -> int:
    """Bytes that decoding remembers of one sequence in one layer, but for lolcats' window."""
    if kind.form is Form.WINDOW:
        return (attention.first_tokens + kind.window) * key_bytes
    maps = model.heads if attention.key_maps is KeyMaps.PER_QUERY_HEAD else model.kv_heads
    return 4 * maps * 2 * attention.feature_dim * (model.head_dim + 1)


def estimate(spec: TrenchcoatSpec, model: ModelFacts) -> Estimate:
    """Work out what a run needs.

    Raises:
        ValueError: spec.layersPerCria does not fit the model.
    """
    crias = tuple(cria_ranges(model.layers, spec.layers_per_cria))
    tokens = spec.data.tokens // spec.data.sequence_length * spec.data.sequence_length
    size = _BYTES[spec.dtype]
    per_layer = layer_parameters(model)
    longest = max(len(cria.layers) for cria in crias)
    forward = 2.0 * per_layer * model.layers * tokens
    student = [kind for kind in likely_kinds(spec.attention, model.layers) if kind.form is not None]
    key_bytes = 2 * model.kv_heads * model.head_dim * size
    state = sum(_state_bytes(spec.attention, kind, model, key_bytes) for kind in student)
    cache_per_token = key_bytes * len(student)
    transfer_passes = 0 if spec.attention.form is Form.WINDOW else spec.transfer.epochs  # nothing to train
    # LoRA by Cria: layerwise is one more forward; block runs forward, recomputation and half a backward.
    lora_passes = 1.0 if spec.cria_lora.objective == "layerwise" else 3.0
    return Estimate(
        crias=crias,
        tokens=tokens,
        activation_bytes=(len(crias) - 1) * model.hidden_size * tokens * size,
        weight_bytes=model.parameters * size,
        cria_weight_bytes=per_layer * longest * size,
        collect_flop=forward,
        cria_flop=forward * (transfer_passes + lora_passes * spec.cria_lora.epochs),
        decode_state_bytes=state,
        cache_tokens=-(-state // cache_per_token) if cache_per_token else 0,
    )
