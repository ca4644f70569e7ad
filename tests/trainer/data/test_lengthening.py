"""Longer sequences at the end of training: text that stood together, every token once in an epoch."""

from collections.abc import Callable

import pytest
import torch
from trenchcoat_api.artifacts import DataFacts, Facts, ModelFacts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import LengtheningData, Schedule, TokenData, layout, packing
from trenchcoat_trainer.data.layout import token_path
from trenchcoat_trainer.data.packing import Packer

LENGTH, BATCH, MULTIPLE = 64, 8, 4

Open = Callable[..., LengtheningData]


@pytest.fixture
def lengthening(make_spec, open_stage, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a text of so many sequences in which every token is its own number."""
    monkeypatch.setattr(layout, "TOKEN_BYTES", 5 * LENGTH * 4)
    monkeypatch.setattr(packing, "SHUFFLE_TOKENS", 10 * LENGTH)

    def make(sequences: int, *, share: float, epochs: int = 1, seed: int = 0) -> LengtheningData:
        context = open_stage(make_spec(), Stage.TOKENIZE)

        def write(index: int, tensors: dict[str, torch.Tensor]) -> None:
            context.writer.write_tensors(token_path("train", index), tensors)

        packer = Packer(LENGTH, sequences, write, shuffle=True)
        packer.add(range(sequences * LENGTH))
        assert packer.finish() == sequences
        data = DataFacts(
            documents=1, sequences=sequences, tokens=0, held_out_documents=0, held_out_sequences=0
        )
        sizes = {"layers": 5, "hidden_size": 4, "heads": 1, "kv_heads": 1, "head_dim": 4}
        model = ModelFacts(**sizes, intermediate_size=8, vocab_size=300, parameters=1)
        context.writer.finish(Facts(model=model, data=data))
        schedule = Schedule(
            sequences=sequences, batch_size=BATCH, epochs=epochs, share=share, multiple=MULTIPLE
        )
        return LengtheningData(TokenData(open_stage(make_spec(), Stage.COLLECT)), schedule, seed)

    return make


def test_switched_off_it_is_the_text_as_it_is_stored(lengthening: Open, make_spec, open_stage) -> None:
    data = lengthening(37, share=0.0, epochs=2)
    plain = TokenData(open_stage(make_spec(), Stage.COLLECT))
    for epoch in range(2):
        expected = list(plain.batches(epoch=epoch, batch_size=BATCH))
        for found, wanted in zip(data.batches(epoch), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("sequences", [64, 61, 35])
def test_the_last_steps_read_what_stood_together_and_an_epoch_every_token_once(
    lengthening: Open, sequences: int
) -> None:
    batches = list(lengthening(sequences, share=0.25).batches(0))
    assert len(batches) == -(-sequences // BATCH)
    shapes = [tuple(batch.shape) for batch in batches]
    long = round(0.25 * len(batches))
    assert shapes[-long:] == [(BATCH // MULTIPLE, MULTIPLE * LENGTH)] * long
    assert {tokens for _, tokens in shapes[:-long]} == {LENGTH}
    for batch in batches[-long:]:
        assert (batch.diff() == 1).all()
    assert all(batch.dtype == torch.int64 for batch in batches)
    tokens = torch.cat([batch.flatten() for batch in batches])
    assert sorted(tokens.tolist()) == list(range(sequences * LENGTH))


def test_which_sequences_are_joined_depends_on_seed_and_epoch_alone(lengthening: Open) -> None:
    def joined(seed: int, epoch: int) -> list[int]:
        data = lengthening(64, share=0.7, epochs=2, seed=seed)
        return [int(row[0]) for batch in data.batches(epoch) if batch.shape[1] > LENGTH for row in batch]

    assert joined(0, 1) == joined(0, 1)
    assert joined(0, 1) != joined(1, 1)
    assert set(joined(0, 0)) != set(joined(0, 1))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("sequences", [32, 37])
def test_from_any_step_on_it_goes_on_as_if_never_stopped(
    lengthening: Open, sequences: int, epoch: int
) -> None:
    data = lengthening(sequences, share=0.6, epochs=2)
    expected = list(data.batches(epoch))
    for start in range(len(expected) + 1):
        rest = list(data.batches(epoch, start_step=start))
        assert len(rest) == len(expected) - start
        assert all(torch.equal(*pair) for pair in zip(rest, expected[start:], strict=True))


@pytest.mark.parametrize(
    ("sequences", "epochs", "share", "long"),
    [
        (80, 1, 0.25, [2]),  # of 10 steps
        (80, 1, 0.0, [0]),
        (80, 2, 0.25, [0, 5]),
        (80, 2, 0.75, [5, 10]),
        (77, 2, 0.75, [5, 9]),  # 9 full steps: what fills none is read before, as it is stored
        (77, 3, 0.99, [9, 9, 9]),
        (7, 1, 0.9, [0]),  # no full step
    ],
)
def test_a_share_of_all_steps_comes_last(sequences: int, epochs: int, share: float, long: list[int]) -> None:
    schedule = Schedule(sequences=sequences, batch_size=8, epochs=epochs, share=share, multiple=4)
    assert [schedule.long_steps(epoch) for epoch in range(epochs)] == long


def test_an_epoch_of_long_steps_alone_begins_with_what_fills_none(lengthening: Open) -> None:
    shapes = [tuple(batch.shape) for batch in lengthening(19, share=0.9, epochs=3).batches(2)]
    assert shapes == [(3, LENGTH), (2, MULTIPLE * LENGTH), (2, MULTIPLE * LENGTH)]
