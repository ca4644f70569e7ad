"""Parts of objects that are put together by the store: the same bytes, in sizes that S3 allows."""

from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_trainer.store.parts import (
    MAX_COPY_BYTES,
    MAX_UPLOAD_BYTES,
    MIN_BYTES,
    Piece,
    Span,
    plan_parts,
)

MIB = 1024 * 1024
spans = st.builds(
    Span,
    st.sampled_from(["a", "b"]),
    st.integers(0, 3 * MIN_BYTES),
    st.one_of(st.integers(0, 100_000), st.integers(MIN_BYTES - 2, 3 * MIN_BYTES), st.integers(0, 10**10)),
)
pieces = st.lists(st.one_of(spans, st.binary(max_size=50)), max_size=12)


def flat(items: list[Piece]) -> list[Piece]:
    """Pieces in one form: what follows on in one object joined, single bytes as they are."""
    joined: list[Piece] = []
    for item in items:
        last = joined[-1] if joined else None
        if isinstance(item, bytes) and isinstance(last, bytes):
            joined[-1] = last + item
        elif (
            isinstance(item, Span)
            and isinstance(last, Span)
            and (last.path, last.offset + last.length) == (item.path, item.offset)
        ):
            joined[-1] = Span(last.path, last.offset, last.length + item.length)
        elif item != b"" and not (isinstance(item, Span) and item.length == 0):
            joined.append(item)
    return joined


@given(pieces)
def test_parts_hold_the_pieces_in_order(given_pieces: list[Piece]) -> None:
    parts = plan_parts(given_pieces)
    assert flat([piece for part in parts for piece in part.pieces]) == flat(given_pieces)


@given(pieces)
def test_parts_have_sizes_that_s3_allows_and_memory_holds(given_pieces: list[Piece]) -> None:
    parts = plan_parts(given_pieces)
    assert all(part.size >= MIN_BYTES for part in parts[:-1])
    for part in parts:
        assert 0 < part.size <= (MAX_COPY_BYTES if part.is_copied else MAX_UPLOAD_BYTES)
        assert not part.is_copied or (len(part.pieces) == 1 and isinstance(part.pieces[0], Span))


def test_of_a_large_layer_little_is_uploaded() -> None:
    header, norm = b"h" * 1000, Span("model", 10, 32_768)
    matrices = [Span("model", (index + 1) * 10**9, 600 * MIB) for index in range(7)]
    parts = plan_parts([header, norm, *matrices])
    uploaded = [part for part in parts if not part.is_copied]
    assert [part.size for part in uploaded] == [MIN_BYTES]
    assert sum(part.size for part in parts) == 1000 + 32_768 + 7 * 600 * MIB


def test_small_tensors_are_uploaded_together_in_one_object() -> None:
    parts = plan_parts([b"header", *(Span("model", 10_000_000 * n, 100_000) for n in range(20))])
    assert [(part.is_copied, part.size) for part in parts] == [(False, 6 + 2_000_000)]
