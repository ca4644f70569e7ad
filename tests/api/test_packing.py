"""How many sequences the collection computes at once."""

import pytest
from trenchcoat_api.packing import PACKED_TOKENS, collected_at_once, packed


@pytest.mark.parametrize(
    ("length", "in_object", "at_once"),
    [
        (1024, 8, 8),  # of 1B
        (1024, 4, 4),  # of 8B: no more than an object has
        (1024, 1, 1),  # of 405B
        (1024, 28, 7),  # of SmolLM2-135M: four batches of 7, not three of 8 and one of 4
        (1024, 9, 5),
        (131_072, 1, 1),
        (131_072, 3, 1),
        (16, 10, 10),
    ],
)
def test_a_gpu_is_filled_unless_the_spec_says_otherwise(length: int, in_object: int, at_once: int) -> None:
    assert collected_at_once(None, length, in_object, on_gpu=True) == at_once
    assert at_once == 1 or at_once * length <= PACKED_TOKENS
    assert collected_at_once(None, length, in_object, on_gpu=False) == 1


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 1), (3, 3), (10, 10), (16, 10)])
def test_what_the_spec_says_is_kept_within_an_object(batch_size: int, at_once: int, on_gpu: bool) -> None:
    assert collected_at_once(batch_size, 8192, 10, on_gpu=on_gpu) == at_once


def test_a_sequence_is_never_cut() -> None:
    assert packed(2 * PACKED_TOKENS, 4) == 1
    assert packed(1024, 0) == 1
