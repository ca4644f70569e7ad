"""Sets of sequences: held-out text joined, and what is measured together."""

import torch
from trenchcoat_trainer.stages.evaluate.sets import passes, text_set


def stream(sequences: int, length: int = 8) -> torch.Tensor:
    return torch.arange(sequences * length, dtype=torch.int32).view(sequences, length)


def test_joined_sequences_go_on_where_the_one_before_ended():
    joined = text_set(stream(7), 3, ["teacher"])
    assert joined.length == 24
    assert torch.equal(joined.tokens, torch.arange(48, dtype=torch.int32).view(2, 24))


def test_every_token_but_a_sequences_first_counts():
    joined = text_set(stream(4), 2, ["teacher"])
    assert joined.counts.sum() == 2 * 15
    assert not joined.counts[:, 0].any()


def test_batches_of_longer_sequences_have_as_many_fewer():
    short, long = text_set(stream(8), 1, []), text_set(stream(8), 4, [])
    assert (short.batch_size(32), long.batch_size(32), long.batch_size(8)) == (4, 1, 1)
    assert short.batch_count(3 * 8) == 3


def test_no_pass_holds_more_than_the_largest_set():
    large, small = text_set(stream(9), 1, ["a", "b"]), text_set(stream(4), 1, ["a", "b"])
    grouped = passes([large, small, small, small])
    assert [len(group) for group in grouped] == [1, 2, 1]
    assert [item for group in grouped for item in group] == [large, small, small, small]
