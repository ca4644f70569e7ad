"""The order of reading."""

import numpy as np
import pytest
from trenchcoat_trainer.data.order import Order


def read_all(order: Order, epoch: int, **options: int | bool) -> list[int]:
    pieces = order.pieces(epoch, **options)
    return [piece.group * order.group_size + int(row) for piece in pieces for row in piece.rows]


@pytest.mark.parametrize(("sequences", "group_size"), [(1, 4), (4, 4), (5, 4), (23, 4), (23, 1), (7, 100)])
def test_every_sequence_comes_once_an_epoch(sequences: int, group_size: int) -> None:
    order = Order(sequences, group_size, seed=3)
    assert sorted(read_all(order, 0)) == list(range(sequences))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = Order(50, 8, seed=1)
    assert read_all(order, 2) == read_all(Order(50, 8, seed=1), 2)
    assert read_all(order, 2) != read_all(order, 3)
    assert read_all(order, 2) != read_all(Order(50, 8, seed=2), 2)


@pytest.mark.parametrize("skip", [0, 1, 7, 8, 9, 24, 49, 50])
def test_skipping_leaves_the_rest_as_it_is(skip: int) -> None:
    order = Order(50, 8, seed=1)
    assert read_all(order, 4, skip=skip) == read_all(order, 4)[skip:]


def test_groups_are_read_one_after_the_other() -> None:
    pieces = list(Order(50, 8, seed=1).pieces(0))
    assert len({piece.group for piece in pieces}) == len(pieces) == 7


def test_without_shuffling_the_order_is_that_of_the_store() -> None:
    assert read_all(Order(23, 4, seed=1), 5, shuffle=False) == list(range(23))


def test_both_groups_and_sequences_within_them_are_permuted() -> None:
    pieces = list(Order(64, 8, seed=0).pieces(0))
    assert [piece.group for piece in pieces] != list(range(8))
    assert all(not np.array_equal(piece.rows, np.arange(8)) for piece in pieces)
