"""What the evaluation holds at a time: hidden states of every form, in memory or in the store."""

from trenchcoat_api.artifacts import DataFacts, ModelFacts
from trenchcoat_api.decode_state import ITEM_BYTES
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import Stage

IN_MEMORY_BYTES = 2 * 1024**3
"""States larger than this, of one set of sequences in one form of the model, are kept in the store."""
AHEAD = 2
"""Batches that are read before they are needed, of states in the store."""
PENDING = 4
"""Batches that wait to be written, at most."""
SPARE_BYTES = 2_000_000_000
"""Of its host's memory for each process, which weights that are read ahead leave to all else."""
MOST_FORMS = 9
"""Forms and parts of the student that held-out text is measured in, and teachers; at most."""
MOST_COMPARED_FORMS = 4
"""Forms that recall and other text are measured in, at most."""


def pass_bytes(spec: TrenchcoatSpec, model: ModelFacts, data: DataFacts) -> int:
    """Bytes of the states of the largest pass, at most."""
    return max(tokens * forms for tokens, forms in _sets(spec, data)) * _token_bytes(spec, model)


def memory_bytes(spec: TrenchcoatSpec, model: ModelFacts, data: DataFacts) -> int:
    """Bytes of the states that are in the memory of one rank at a time, at most."""
    each = _token_bytes(spec, model)
    moving = (AHEAD + PENDING + 1) * _batch(spec) * each
    return max(
        _share(spec, tokens, forms) * each if _share(spec, tokens) * each <= IN_MEMORY_BYTES else moving
        for tokens, forms in _sets(spec, data)
    )


def stored_bytes(spec: TrenchcoatSpec, model: ModelFacts, data: DataFacts) -> int:
    """Bytes of the states that are in the store alone, in the pass that has most of them."""
    each = _token_bytes(spec, model)
    return max(
        tokens * forms * each if _share(spec, tokens) * each > IN_MEMORY_BYTES else 0
        for tokens, forms in _sets(spec, data)
    )


def _share(spec: TrenchcoatSpec, tokens: int, forms: int = 1) -> int:
    """Tokens of a set, in so many forms, that one rank has at most: batches are dealt to the ranks."""
    batch, ranks = _batch(spec), stage_size(spec, Stage.EVALUATE).ranks
    own = -(-(-(-tokens // batch) * forms) // ranks)
    return min(own * batch, tokens * forms)


def _batch(spec: TrenchcoatSpec) -> int:
    """Tokens of a batch, at most."""
    return max(spec.evaluate.batch_size * spec.data.sequence_length, _longest(spec))


def _longest(spec: TrenchcoatSpec) -> int:
    return spec.data.sequence_length * max((1, *spec.evaluate.length_multiples))


def _sets(spec: TrenchcoatSpec, data: DataFacts) -> tuple[tuple[int, int], ...]:
    """Tokens and forms of held-out text, of the largest set that recall is measured on, and of other text."""
    return (
        (data.held_out_sequences * spec.data.sequence_length, MOST_FORMS),
        (spec.evaluate.recall_samples * _longest(spec), MOST_COMPARED_FORMS),
        (spec.evaluate.other_text.tokens if spec.evaluate.other_text else 0, MOST_COMPARED_FORMS),
    )


def _token_bytes(spec: TrenchcoatSpec, model: ModelFacts) -> int:
    return model.hidden_size * ITEM_BYTES[spec.dtype]
