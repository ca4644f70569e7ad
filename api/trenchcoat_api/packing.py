"""How many sequences run at once where a spec leaves it open: as many as fill a GPU."""

PACKED_TOKENS = 8192
"""Sequences run together up to so many tokens, which fill a GPU at any width."""


def packed(length: int, most: int) -> int:
    """Sequences of `length` tokens that fill a GPU: `most` at most, one at least."""
    return max(1, min(most, PACKED_TOKENS // length))


def collected_at_once(batch_size: int | None, length: int, in_object: int, *, on_gpu: bool) -> int:
    """Sequences that the collection computes at once.

    Args:
        batch_size: spec.collect.batchSize.
        length: tokens of a sequence.
        in_object: sequences of a stored object, whose states are computed by themselves.
        on_gpu: whether a GPU computes.
    """
    if batch_size is not None:
        return min(batch_size, in_object)
    if not on_gpu:
        return 1
    batches = -(-in_object // packed(length, in_object))
    return -(-in_object // batches)  # as even as can be
