"""Packing documents into sequences."""

import random
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
import torch
from trenchcoat_trainer.data import packing
from trenchcoat_trainer.data.layout import DOCUMENT_STARTS, TOKENS
from trenchcoat_trainer.data.packing import Packer, stored_places

LENGTH = 8


def make_documents(count: int) -> list[list[int]]:
    """Documents whose tokens tell where they come from: document * 100 + position."""
    source = random.Random(0)
    return [[index * 100 + at for at in range(source.randint(1, 30))] for index in range(count)]


class Objects:
    def __init__(self) -> None:
        self.written: dict[int, dict[str, torch.Tensor]] = {}

    def write(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        self.written[index] = tensors

    @property
    def tokens(self) -> torch.Tensor:
        return torch.cat([self.written[index][TOKENS] for index in sorted(self.written)])


def pack(
    documents: Iterable[list[int]], *, limit: int = 1000, shuffle: bool = False
) -> tuple[Objects, Packer]:
    objects = Objects()
    packer = Packer(LENGTH, limit, objects.write, shuffle=shuffle)
    for document in documents:
        packer.add(document)
    packer.finish()
    return objects, packer


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHUFFLE_TOKENS", 10 * LENGTH)
    monkeypatch.setattr(packing, "sequences_per_token_object", lambda length: 4)


def test_sequences_are_the_documents_end_to_end() -> None:
    documents = make_documents(40)
    objects, packer = pack(documents)
    stream = [token for document in documents for token in document]
    assert objects.tokens.flatten().tolist() == stream[: len(stream) // LENGTH * LENGTH]
    assert packer.documents == 40
    assert [len(objects.written[index][TOKENS]) for index in range(len(objects.written) - 1)] == [4] * (
        len(objects.written) - 1
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_document_starts_are_where_documents_begin(shuffle: bool) -> None:
    objects, _ = pack(make_documents(40), shuffle=shuffle)
    for tensors in objects.written.values():
        starts = {tuple(item) for item in tensors[DOCUMENT_STARTS].tolist()}
        expected = {tuple(item) for item in (tensors[TOKENS] % 100 == 0).nonzero().tolist()}
        assert starts == expected


def test_shuffling_keeps_the_sequences_and_parts_neighbours() -> None:
    plain, _ = pack(make_documents(60))
    mixed, _ = pack(make_documents(60), shuffle=True)
    rows = [tuple(row) for row in plain.tokens.tolist()]
    mixed_rows = [tuple(row) for row in mixed.tokens.tolist()]
    assert sorted(rows) == sorted(mixed_rows)
    at = {row: index for index, row in enumerate(mixed_rows)}
    distances = [abs(at[first] - at[second]) for first, second in pairwise(rows)]
    assert np.median(distances) > 2


@pytest.mark.parametrize("documents", [1, 4, 8, 60, 200])
def test_where_each_sequence_of_the_text_was_stored_follows_from_their_number(documents: int) -> None:
    """Fewer than are mixed at a time, as many, and more."""
    plain, _ = pack(make_documents(documents))
    mixed, _ = pack(make_documents(documents), shuffle=True)
    places = stored_places(len(plain.tokens), LENGTH)
    assert torch.equal(mixed.tokens[places], plain.tokens)
    assert sorted(places) == list(range(len(plain.tokens)))


def test_no_more_than_the_limit_is_made() -> None:
    objects, packer = pack(make_documents(40), limit=5)
    assert packer.is_full
    assert objects.tokens.shape == (5, LENGTH)
    assert packer.documents < 40


def test_a_text_shorter_than_a_sequence_makes_none() -> None:
    objects, packer = pack([[1, 2, 3]])
    assert not objects.written
    assert packer.cut == 0


@pytest.mark.parametrize("stop", [0, 1, 7, 20, 39, 40])
def test_a_restored_packer_writes_the_same_objects(stop: int) -> None:
    documents = make_documents(40)
    expected, _ = pack(documents, shuffle=True)
    objects = Objects()
    first = Packer(LENGTH, 1000, objects.write, shuffle=True)
    for document in documents[:stop]:
        first.add(document)
    tensors, state = first.state()
    second = Packer(LENGTH, 1000, objects.write, shuffle=True)
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, state)
    for document in documents[stop:]:
        second.add(document)
    second.finish()
    assert objects.written.keys() == expected.written.keys()
    for index, tensors in expected.written.items():
        for name, tensor in tensors.items():
            assert torch.equal(objects.written[index][name], tensor)
