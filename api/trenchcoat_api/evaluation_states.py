"""What the evaluation holds at a time: hidden states of every form, in memory or on local disk."""

from trenchcoat_api.artifacts import DataFacts, ModelFacts
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.spec import TrenchcoatSpec

IN_MEMORY_BYTES = 2 * 1024**3
"""States larger than this, of one set of sequences in one form of the model, are kept in a file."""
MOST_FORMS = 9
"""Forms and parts of the student that held-out text is measured in, and teachers; at most."""
MOST_COMPARED_FORMS = 4
"""Forms that recall and other text are measured in, at most."""


def pass_bytes(spec: TrenchcoatSpec, model: ModelFacts, data: DataFacts) -> int:
    """Bytes of the states of the largest pass, at most."""
    return max(tokens * forms for tokens, forms in _sets(spec, data)) * _token_bytes(spec, model)


def disk_bytes(spec: TrenchcoatSpec, model: ModelFacts, data: DataFacts) -> int:
    """Bytes of local disk that the evaluation writes at most; 0 where all states stay in memory."""
    largest = max(tokens for tokens, _ in _sets(spec, data)) * _token_bytes(spec, model)
    return pass_bytes(spec, model, data) if largest > IN_MEMORY_BYTES else 0


def _sets(spec: TrenchcoatSpec, data: DataFacts) -> tuple[tuple[int, int], ...]:
    """Tokens and forms of held-out text, of the largest set that recall is measured on, and of other text."""
    longest = spec.data.sequence_length * max((1, *spec.evaluate.length_multiples))
    return (
        (data.held_out_sequences * spec.data.sequence_length, MOST_FORMS),
        (spec.evaluate.recall_samples * longest, MOST_COMPARED_FORMS),
        (spec.evaluate.other_text.tokens if spec.evaluate.other_text else 0, MOST_COMPARED_FORMS),
    )


def _token_bytes(spec: TrenchcoatSpec, model: ModelFacts) -> int:
    return model.hidden_size * ITEM_BYTES[spec.dtype]
