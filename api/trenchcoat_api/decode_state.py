"""What decoding one sequence holds in memory: student and teacher, from spec and model's shape alone."""

from dataclasses import dataclass

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.layer_kinds import LayerKind, likely_kinds
from trenchcoat_api.results import DecodeFacts
from trenchcoat_api.spec import Attention, DType, Form, KeyMaps, TrenchcoatSpec

ITEM_BYTES = {DType.BFLOAT16: 2, DType.FLOAT32: 4}
FIRST_TOKENS = 1
"""Tokens at the beginning that the windowed teacher sees from everywhere."""
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeState:
    """Bytes of one sequence."""

    layers: int
    """Decoder layers of the model."""
    student_layers: int
    """Those of them that do not keep softmax attention."""
    token_bytes: int
    """A token's keys and values in one layer, in spec.dtype."""
    state_bytes: int
    """The most that the student layers hold together, however long the sequence."""

    def student(self, tokens: int) -> int:
        """The most that the student holds after so many tokens, over all layers."""
        kept = (self.layers - self.student_layers) * self.token_bytes * tokens
        return self.state_bytes + kept

    def teacher(self, tokens: int) -> int:
        """What the teacher's key/value cache holds after so many tokens, over all layers."""
        return self.layers * self.token_bytes * tokens

    @property
    def tokens(self) -> int:
        """Tokens that the same bytes hold in a key/value cache of the student layers; 0 if there are none."""
        return self.state_bytes // (self.student_layers * self.token_bytes) if self.student_layers else 0

    @property
    def crossover(self) -> int:
        """Tokens from which on the student holds less than the teacher; 0 if it is the teacher."""
        return self.tokens + 1 if self.student_layers else 0

    @property
    def equal_window(self) -> int:
        """Tokens of the sliding window that, with the first token, holds what the student layers hold."""
        return max(1, self.tokens - FIRST_TOKENS)

    def facts(self, lengths: list[int]) -> DecodeFacts:
        """The same for a manifest, at these lengths."""
        return DecodeFacts(
            crossover=self.crossover,
            student={str(length): self.student(length) for length in lengths},
            teacher={str(length): self.teacher(length) for length in lengths},
            equal_window=self.equal_window,
        )


def decode_state(spec: TrenchcoatSpec, model: ModelFacts) -> DecodeState:
    """Work it out. Layers that the run is to choose are counted, whichever they will be."""
    token = 2 * model.kv_heads * model.head_dim * ITEM_BYTES[spec.dtype]
    student = [kind for kind in likely_kinds(spec.attention, model.layers) if kind.form is not None]
    return DecodeState(
        layers=model.layers,
        student_layers=len(student),
        token_bytes=token,
        state_bytes=sum(_layer_bytes(spec.attention, kind, model, token) for kind in student),
    )


def _layer_bytes(attention: Attention, kind: LayerKind, model: ModelFacts, token: int) -> int:
    """Of a window its tokens; of LoLCATs memory [maps, 2F, D], normaliser [maps, 2F], and the terrace."""
    if kind.form is Form.WINDOW:
        return (attention.first_tokens + kind.window) * token
    maps = model.heads if attention.key_maps is KeyMaps.PER_QUERY_HEAD else model.kv_heads
    linear = _FP32 * maps * 2 * attention.feature_dim * (model.head_dim + 1)
    return linear + (2 * kind.window - 1) * token
