"""How sequences are laid out in objects: what the writing and the reading stages agree on."""

from trenchcoat_api.spec import DType

HIDDEN_BYTES = 32 * 1024 * 1024
"""Target size of an object of hidden states."""
TOKEN_BYTES = 1024 * 1024
"""Target size of an object of token ids: small, because a Cria's order of reading jumps between them."""
TOKENS = "tokens"
"""Tensor of token ids, int32 [sequences, tokens]."""
DOCUMENT_STARTS = "document_starts"
"""Tensor of where documents begin, int32 [documents, 2]: sequence within the object, and position in it."""
HIDDEN = "hidden"
"""Tensor of hidden states, [sequences, tokens, hidden size]."""
ITEM_BYTES = {DType.BFLOAT16: 2, DType.FLOAT32: 4}


def token_path(split: str, index: int) -> str:
    """Object of token ids, relative to the tokenize artifact; `split` is train or held_out."""
    return f"{split}/{index:05d}.safetensors"


def boundary_path(boundary: int, index: int) -> str:
    """Object of hidden states that enter Cria `boundary`, relative to the collect artifact."""
    return f"boundary-{boundary:02d}/{index:05d}.safetensors"


def sequences_per_token_object(sequence_length: int) -> int:
    """Sequences in every object of token ids but the last of its split."""
    return max(1, TOKEN_BYTES // (4 * sequence_length))


def sequences_per_hidden_object(sequence_length: int, hidden_size: int, dtype: DType) -> int:
    """Sequences in every object of hidden states but the last of its boundary."""
    return max(1, HIDDEN_BYTES // (sequence_length * hidden_size * ITEM_BYTES[dtype]))
