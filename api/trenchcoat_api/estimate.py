"""What a run needs before anything starts: bytes and arithmetic, from the spec and the model's shape alone.

Hidden states are stored at inner Cria boundaries only: the first Cria starts from token ids. A layer's
arithmetic counts its matrix products; attention over 1024 tokens adds under 3 percent at 405B.
"""

from dataclasses import dataclass

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.decode_state import ITEM_BYTES, DecodeState, decode_state
from trenchcoat_api.layer_kinds import chooses_layers
from trenchcoat_api.phases import adapter_epochs, adapts_teacher, reads_boundaries, transfer_epochs
from trenchcoat_api.selection import SEQUENCES, TOKENS
from trenchcoat_api.spec import TrenchcoatSpec

TERAFLOPS = 600.0
"""What one GPU of the H100 class sustains in bf16, where nobody says otherwise."""


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
    """Hidden states at all inner boundaries; 0 where no Cria reads them."""
    weight_bytes: int
    """The teacher's weights in spec.dtype."""
    cria_weight_bytes: int
    """Weights of the largest Cria: what its GPU must hold besides one layer's graph."""
    select_flop: float
    """Matrix products of choosing the wide layers; 0 where the run does not."""
    collect_flop: float
    """Matrix products of the teacher's forward over all tokens; 0 where no Cria reads what it leaves."""
    transfer_epochs: int
    """Passes of attention transfer; none where the form has nothing to train in it."""
    cria_flop: float
    """Matrix products of all Crias, both phases."""
    stitch_flop: float
    """Matrix products of the stitch: forward, and backward through weights that stay as they are."""
    adapt_flop: float
    """The same of the adapted teacher; 0 where the run does not train it."""
    decode: DecodeState
    """What decoding one sequence holds."""

    def gpu_hours(self, flop: float, teraflops: float) -> float:
        """Hours of one GPU that sustains `teraflops` TFLOP/s."""
        return flop / (teraflops * 1e12) / 3600


def estimate(spec: TrenchcoatSpec, model: ModelFacts) -> Estimate:
    """Work out what a run needs.

    Raises:
        ValueError: spec.layersPerCria does not fit the model.
    """
    crias = tuple(cria_ranges(model.layers, spec.layers_per_cria))
    tokens = spec.data.tokens // spec.data.sequence_length * spec.data.sequence_length
    size = ITEM_BYTES[spec.dtype]
    per_layer = layer_parameters(model)
    longest = max(len(cria.layers) for cria in crias)
    forward = 2.0 * per_layer * model.layers * tokens
    collects, epochs = reads_boundaries(spec), transfer_epochs(spec)
    # LoRA by Cria: layerwise is one more forward; block runs forward, recomputation and half a backward.
    lora_passes = 1.0 if spec.cria_lora.objective == "layerwise" else 3.0
    return Estimate(
        crias=crias,
        tokens=tokens,
        activation_bytes=(len(crias) - 1) * model.hidden_size * tokens * size if collects else 0,
        weight_bytes=model.parameters * size,
        cria_weight_bytes=per_layer * longest * size,
        select_flop=forward / tokens * SEQUENCES * TOKENS if chooses_layers(spec.attention) else 0.0,
        collect_flop=forward if collects else 0.0,
        transfer_epochs=epochs,
        cria_flop=forward * (epochs + lora_passes * spec.cria_lora.epochs),
        stitch_flop=2 * forward * spec.stitch.epochs,
        adapt_flop=2 * forward * adapter_epochs(spec) if adapts_teacher(spec) else 0.0,
        decode=decode_state(spec, model),
    )
