"""Reading token ids and hidden states back from a store."""

from collections.abc import Callable

import pytest
import torch
from trenchcoat_api.artifacts import DataFacts, Facts, ModelFacts
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import CriaData, TokenData, layout
from trenchcoat_trainer.data.layout import HIDDEN, TOKENS, boundary_path, token_path
from trenchcoat_trainer.errors import CorruptObjectError, MissingInputError, NotFoundError
from trenchcoat_trainer.runtime.context import StageContext

SEQUENCES, HELD_OUT, LENGTH, HIDDEN_SIZE = 23, 5, 64, 4
TOKEN_GROUP, HIDDEN_GROUP = 4, 3

Open = Callable[..., StageContext]


@pytest.fixture(autouse=True)
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TOKEN_BYTES", TOKEN_GROUP * LENGTH * 4)
    monkeypatch.setattr(layout, "HIDDEN_BYTES", HIDDEN_GROUP * LENGTH * HIDDEN_SIZE * 4)


@pytest.fixture
def ids() -> torch.Tensor:
    """Training sequences: the first token of each is its number."""
    ids = torch.randint(0, 300, (SEQUENCES, LENGTH), dtype=torch.int32)
    ids[:, 0] = torch.arange(SEQUENCES)
    return ids


@pytest.fixture
def stored(make_spec, open_stage, ids: torch.Tensor) -> Open:
    """Complete tokenize and collect artifacts for a model of 5 layers in 3 Crias; opens contexts on them."""
    spec = make_spec()
    context = open_stage(spec, Stage.TOKENIZE)
    for split, number in (("train", SEQUENCES), ("held_out", HELD_OUT)):
        for index, part in enumerate(ids[:number].split(TOKEN_GROUP)):
            context.writer.write_tensors(token_path(split, index), {TOKENS: part})
    sizes = {"layers": 5, "hidden_size": HIDDEN_SIZE, "heads": 1, "kv_heads": 1, "head_dim": 4}
    model = ModelFacts(**sizes, intermediate_size=8, vocab_size=300, parameters=1)
    data = DataFacts(
        documents=1, sequences=SEQUENCES, tokens=1472, held_out_documents=1, held_out_sequences=HELD_OUT
    )
    context.writer.finish(Facts(model=model, data=data))
    context = open_stage(spec, Stage.COLLECT)
    for boundary in (1, 2):
        for index, part in enumerate(hidden(ids, boundary).split(HIDDEN_GROUP)):
            context.writer.write_tensors(boundary_path(boundary, index), {HIDDEN: part})
    context.writer.finish()
    return lambda stage, **options: open_stage(spec, stage, **options)


def hidden(ids: torch.Tensor, boundary: int) -> torch.Tensor:
    return ids.float()[..., None].repeat(1, 1, HIDDEN_SIZE) * 10**boundary


def first_tokens(batches: list[torch.Tensor]) -> list[int]:
    return torch.cat(batches)[:, 0].tolist()


def test_an_epoch_of_tokens_holds_every_sequence_once(stored: Open, ids: torch.Tensor) -> None:
    data = TokenData(stored(Stage.COLLECT))
    batches = list(data.batches(epoch=0, batch_size=5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert len(batches) == data.steps(5)
    assert batches[0].dtype == torch.int64
    order = first_tokens(batches)
    assert sorted(order) == list(range(SEQUENCES))
    assert order != list(range(SEQUENCES))
    assert torch.equal(torch.cat(batches), ids[order].long())


def test_evaluation_reads_held_out_text_in_the_order_of_the_store(stored: Open) -> None:
    data = TokenData(stored(Stage.COLLECT), split="held_out")
    assert data.sequences == HELD_OUT
    assert first_tokens(list(data.batches(epoch=0, batch_size=2, shuffle=False))) == list(range(HELD_OUT))


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_tokens_go_on_from_any_step(stored: Open, step: int) -> None:
    data = TokenData(stored(Stage.COLLECT))
    whole = list(data.batches(epoch=1, batch_size=5))
    rest = list(data.batches(epoch=1, batch_size=5, start_step=step))
    assert first_tokens(rest) == first_tokens(whole[step:])


@pytest.mark.parametrize("start", [0, 2])
def test_ranks_share_the_order_of_one(stored: Open, start: int) -> None:
    data = TokenData(stored(Stage.COLLECT))
    alone = list(data.batches(epoch=0, batch_size=2))
    ranks = [
        list(data.batches(epoch=0, batch_size=2, rank=rank, world_size=3, start_step=start))
        for rank in range(3)
    ]
    assert {len(batches) for batches in ranks} == {data.steps(2, 3) - start} == {SEQUENCES // 6 - start}
    for step, batches in enumerate(zip(*ranks, strict=True), start):
        for rank, batch in enumerate(batches):
            assert torch.equal(batch, alone[step * 3 + rank])


def test_ranges_of_tokens_cross_objects(stored: Open, ids: torch.Tensor) -> None:
    data = TokenData(stored(Stage.COLLECT))
    for first, last in ((0, 1), (3, 5), (2, 15), (20, 23), (0, 23)):
        assert torch.equal(data.read(first, last), ids[first:last])


def test_inputs_and_targets_of_a_cria_belong_together(stored: Open, ids: torch.Tensor) -> None:
    context = stored(Stage.CRIA, cria=1)
    data = CriaData(context, context.cria, fail_to_embed, with_targets=True)
    batches = list(data.batches(epoch=0, batch_size=4))
    assert len(batches) == data.steps(4) == 6
    inputs, targets = (
        torch.cat(parts) for parts in zip(*((b.inputs, b.targets) for b in batches), strict=True)
    )
    order = (inputs[:, 0, 0] / 10).long()
    assert sorted(order.tolist()) == list(range(SEQUENCES))
    assert torch.equal(inputs, hidden(ids, 1)[order])
    assert torch.equal(targets, hidden(ids, 2)[order])


def test_the_first_cria_embeds_the_tokens_in_the_same_order(stored: Open, ids: torch.Tensor) -> None:
    context = stored(Stage.CRIA, cria=0)
    data = CriaData(context, context.cria, lambda batch: hidden(batch, 0), with_targets=True)
    for batch in data.batches(epoch=0, batch_size=4):
        assert torch.equal(batch.inputs * 10, batch.targets)


def test_the_last_cria_has_no_stored_targets(stored: Open) -> None:
    context = stored(Stage.CRIA, cria=2)
    data = CriaData(context, context.cria, fail_to_embed, with_targets=True)
    assert all(batch.targets is None for batch in data.batches(epoch=0, batch_size=4))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_cria_goes_on_from_any_step(stored: Open, step: int) -> None:
    context = stored(Stage.CRIA, cria=1)
    data = CriaData(context, context.cria, fail_to_embed, with_targets=False)
    whole = [batch.inputs for batch in data.batches(epoch=3, batch_size=4)]
    rest = [batch.inputs for batch in data.batches(epoch=3, batch_size=4, start_step=step)]
    assert torch.equal(torch.cat(rest), torch.cat(whole[step:]))


@pytest.mark.parametrize("damage", ["cut", "changed", "swapped"])
def test_a_damaged_object_is_named(stored: Open, damage: str) -> None:
    context = stored(Stage.CRIA, cria=1)
    path = context.artifacts.collect.prefix + boundary_path(1, 2)
    data = bytearray(context.store.read(path))
    if damage == "cut":
        del data[-10:]
    elif damage == "changed":
        data[-10] ^= 1
    else:
        data = bytearray(context.store.read(context.artifacts.collect.prefix + boundary_path(1, 3)))
    context.store.write(path, bytes(data))
    reader = CriaData(context, context.cria, fail_to_embed, with_targets=False)
    with pytest.raises(CorruptObjectError, match=r"boundary-01/00002\.safetensors"):
        list(reader.batches(epoch=0, batch_size=4))


@pytest.mark.parametrize("damage", ["cut", "longer", "changed", "gone"])
@pytest.mark.parametrize("reader", ["tokens", "range of tokens", "embedded tokens", "inputs", "targets"])
def test_every_reader_names_a_damaged_object(stored: Open, reader: str, damage: str) -> None:
    context = stored(Stage.CRIA, cria=0 if reader == "embedded tokens" else 1)
    collect, tokenize = context.artifacts.collect, context.artifacts.tokenize
    place, path = {
        "inputs": (collect, boundary_path(1, 2)),
        "targets": (collect, boundary_path(2, 2)),
    }.get(reader, (tokenize, token_path("train", 2)))
    data = context.store.read(place.prefix + path)
    if damage == "gone":
        context.store.delete(place.prefix + path)
    else:
        changed = {"cut": data[:-10], "longer": data + b"x", "changed": data[:-10] + b"\xff" + data[-9:]}
        context.store.write(place.prefix + path, changed[damage])

    def read() -> None:
        if reader == "tokens":
            list(TokenData(context).batches(epoch=0, batch_size=4))
        elif reader == "range of tokens":
            TokenData(context).read(0, SEQUENCES)
        else:
            with_targets = reader == "targets"
            cria = CriaData(context, context.cria, lambda ids: hidden(ids, 0), with_targets=with_targets)
            list(cria.batches(epoch=0, batch_size=4))

    with pytest.raises((CorruptObjectError, NotFoundError), match=path.replace(".", r"\.")) as caught:
        read()
    assert isinstance(caught.value, NotFoundError) == (damage == "gone")


def test_batches_that_are_kept_keep_their_content(stored: Open, ids: torch.Tensor) -> None:
    """Memory of objects and batches is used again, but not while somebody holds it."""
    context = stored(Stage.CRIA, cria=1)
    data = CriaData(context, context.cria, fail_to_embed, with_targets=True)
    kept = [batch.inputs[0] for epoch in range(3) for batch in data.batches(epoch=epoch, batch_size=2)]
    for row in kept:
        number = int(row[0, 0] / 10)
        assert torch.equal(row, hidden(ids[number : number + 1], 1)[0])


def test_inputs_that_are_not_there_are_named(make_spec, open_stage) -> None:
    context = open_stage(make_spec(), Stage.TOKENIZE)
    with pytest.raises(MissingInputError, match="tokenize is not complete"):
        TokenData(context)


def test_no_more_objects_than_the_prefetch_depth_are_in_memory(stored: Open, monkeypatch) -> None:
    context = stored(Stage.CRIA, cria=1)
    read = []
    original = context.read_tensors
    monkeypatch.setattr(context, "read_tensors", lambda *place: read.append(place) or original(*place))
    batches = CriaData(context, context.cria, fail_to_embed, with_targets=False).batches(
        epoch=0, batch_size=1
    )
    next(batches)
    assert len(read) <= 1 + 4
    batches.close()


def fail_to_embed(batch: torch.Tensor) -> torch.Tensor:
    raise AssertionError("only the first Cria embeds")
