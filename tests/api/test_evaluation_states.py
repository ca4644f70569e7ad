"""Where the evaluation keeps hidden states, and how much of it."""

import pytest
from trenchcoat_api.artifacts import DataFacts
from trenchcoat_api.evaluation_states import MOST_FORMS, memory_bytes, pass_bytes, stored_bytes
from trenchcoat_api.spec import OtherText

from tests.api.planning.models import LLAMA_405B, published


def held_out(sequences: int) -> DataFacts:
    return DataFacts(
        documents=1, sequences=1, tokens=1024, held_out_documents=1, held_out_sequences=sequences
    )


def test_at_405b_the_store_keeps_what_no_node_should():
    """400 sequences of 1024 tokens, 16384 values of 2 bytes, in every form; of 4096 tokens one in a batch."""
    kept = stored_bytes(published(), LLAMA_405B, held_out(400))
    assert kept == 400 * 1024 * 16384 * 2 * MOST_FORMS
    assert kept / 1e9 == pytest.approx(121, abs=0.5)
    spec = published(evaluate__batchSize=4)
    in_memory = memory_bytes(spec, LLAMA_405B, held_out(400))
    assert in_memory == 7 * 4096 * 16384 * 2


def test_ranks_share_states_out_and_hold_in_memory_what_then_fits() -> None:
    """100 batches of 4 sequences in 9 forms over 8 ranks: no more than 113 each, 13 of a form."""
    spec = published(evaluate__batchSize=4, evaluate__gpusPerNode=4, evaluate__nodes=2)
    assert stored_bytes(spec, LLAMA_405B, held_out(400)) == 0
    assert memory_bytes(spec, LLAMA_405B, held_out(400)) == 113 * 4096 * 16384 * 2
    assert pass_bytes(spec, LLAMA_405B, held_out(400)) == pass_bytes(published(), LLAMA_405B, held_out(400))
    two = published(evaluate__batchSize=4, evaluate__gpusPerNode=2)
    recall = 32 * 4 // 2  # of which half is just small enough, and half of the text is not
    assert memory_bytes(two, LLAMA_405B, held_out(400)) == recall * 4096 * 16384 * 2
    assert stored_bytes(two, LLAMA_405B, held_out(400)) == stored_bytes(
        published(), LLAMA_405B, held_out(400)
    )


def test_where_little_is_held_out_recall_is_the_largest():
    assert pass_bytes(published(), LLAMA_405B, held_out(4)) == 32 * 4096 * 16384 * 2 * 4


def test_small_models_keep_all_of_it_in_memory():
    small = LLAMA_405B.model_copy(update={"hidden_size": 576})
    assert stored_bytes(published(), small, held_out(400)) == 0
    assert memory_bytes(published(), small, held_out(400)) == pass_bytes(published(), small, held_out(400))


def test_much_other_text_is_the_largest():
    spec = published()
    other = OtherText(source="s3://trenchcoat/other.txt", tokens=10**6)
    spec = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"other_text": other})})
    assert pass_bytes(spec, LLAMA_405B, held_out(4)) == 10**6 * 16384 * 2 * 4
