"""What every store promises, on a folder and on a real MinIO."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trenchcoat_trainer.errors import NotFoundError, StoreError
from trenchcoat_trainer.store import Entry, FolderStore, Store
from trenchcoat_trainer.store.base import CHUNK_BYTES

from tests.minio_server import BUCKET


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Either kind of store; the two must behave alike."""
    if request.param == "folder":
        return FolderStore(tmp_path / BUCKET)
    return request.getfixturevalue("minio_server").store()


def test_what_is_written_is_read_whole_and_in_parts(store: Store) -> None:
    store.write("parts/object", b"0123456789")
    assert store.read("parts/object") == b"0123456789"
    assert store.read("parts/object", 3, 4) == b"3456"
    assert store.read("parts/object", 7) == b"789"
    assert store.read("parts/object", 8, 100) == b"89"
    assert store.size("parts/object") == 10


def test_a_write_replaces_the_object(store: Store) -> None:
    store.write("replaced", b"long before")
    store.write("replaced", b"after")
    assert store.read("replaced") == b"after"


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.write("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""
    assert store.read("empty", 0, 0) == b""


def test_missing_objects_are_named(store: Store) -> None:
    assert not store.exists("no/such")
    for attempt in (lambda: store.read("no/such"), lambda: store.size("no/such")):
        with pytest.raises(NotFoundError, match="no/such") as caught:
            attempt()
        assert caught.value.path == "no/such"
    store.delete("no/such")


def test_listing_is_in_order_and_by_prefix_of_the_name(store: Store) -> None:
    for path in ("list/b/2", "list/a", "list/b/10", "list-other/x"):
        store.write(path, b"x" * len(path))
    assert list(store.list("list/")) == [Entry("list/a", 6), Entry("list/b/10", 9), Entry("list/b/2", 8)]
    assert [entry.path for entry in store.list("list/b/1")] == ["list/b/10"]
    assert list(store.list("nothing/")) == []
    store.delete("list/a")
    assert not store.exists("list/a")


def test_large_objects_go_through_in_pieces(store: Store, tmp_path: Path) -> None:
    # More than one part of a multipart upload.
    piece = bytes(range(256)) * 4096
    count = 40
    store.write_stream("large", (piece for _ in range(count)), count * len(piece))
    assert store.size("large") == count * len(piece)
    pieces = list(store.stream("large"))
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert b"".join(pieces) == piece * count
    store.read_file("large", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == piece * count
    store.write_file("again", tmp_path / "local")
    assert store.read("again", len(piece) - 2, 4) == b"\xfe\xff\x00\x01"


@pytest.mark.parametrize("announced", [5, 7])
def test_a_stream_of_another_length_leaves_nothing(store: Store, announced: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        store.write_stream("wrong", iter([b"abc", b"def"]), announced)
    assert not store.exists("wrong")


def test_a_stream_that_fails_leaves_nothing(store: Store) -> None:
    def failing():
        yield b"abc"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.write_stream("failed", failing(), 6)
    assert not store.exists("failed")
    assert list(store.list("failed")) == []


def test_what_is_deleted_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    for name in ("a", "b", "c"):
        store.write(f"folder/{name}", b"data")
    walk = os.walk

    def walk_and_delete(*arguments: Any, **named: Any) -> Iterator[Any]:
        for found in walk(*arguments, **named):
            store.delete("folder/b")
            yield found

    monkeypatch.setattr(os, "walk", walk_and_delete)
    assert [entry.path for entry in store.list("folder/")] == ["folder/a", "folder/c"]


def test_what_a_folder_does_not_let_in_is_named(tmp_path: Path) -> None:
    """A name that is too long stands for all that a file system refuses."""
    store, name = FolderStore(tmp_path), "n" * 300
    for attempt in (store.exists, store.read, store.delete, lambda path: store.write(path, b"")):
        with pytest.raises(StoreError, match=f"{name}.*File name too long"):
            attempt(name)
