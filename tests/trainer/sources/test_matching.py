"""Which files a pattern means: text, each once, in an order that no listing decides."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trenchcoat_trainer.errors import BadInputError, StoreError
from trenchcoat_trainer.sources.text import Text, open_text
from trenchcoat_trainer.store import Entry, FolderStore


def write(folder: Path, *names: str) -> None:
    """Files of one document each, which is the file's own name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n" if ".json" in name else name)


def documents(text: Text) -> list[str]:
    return [document for part in range(text.parts) for document in text.part(part)]


@pytest.fixture
def read(make_spec, tmp_path: Path) -> Callable[[str], list[str]]:
    def read_it(pattern: str) -> list[str]:
        spec = make_spec(data={"source": f"file://{tmp_path}/{pattern}"})
        return documents(open_text(spec, FolderStore(tmp_path / "unused")))

    return read_it


@pytest.mark.parametrize("pattern", ["data", "data/**", "data/**/*.jsonl"])
def test_what_programs_keep_beside_text_is_left_out(read, tmp_path: Path, pattern: str) -> None:
    write(
        tmp_path / "data",
        "a.jsonl",
        "deep/b.jsonl",
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "_temporary/0/task/a.jsonl",
        "_delta_log/00000000000000000000.json",
        "deep/._b.jsonl",
        "_SUCCESS",
    )
    assert read(pattern) == ["a.jsonl", "deep/b.jsonl"]


@pytest.mark.parametrize("pattern", ["data", "data/*", "data/*.txt"])
def test_notes_beside_text_are_no_text(read, tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "data", "readings.txt", "README.txt", "LICENSE.txt", "notice.TXT", "ReadMe.de.txt")
    assert read(pattern) == ["readings.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("_data/*.jsonl", ["a.jsonl"]),
        ("_data", ["a.jsonl"]),
        ("*/*.jsonl", ["c.jsonl"]),
        ("_*/*.jsonl", ["a.jsonl"]),
        ("plain/_*.jsonl", ["_b.jsonl"]),
        ("plain/README*", ["README.txt"]),
        ("plain/README.txt", ["README.txt"]),
    ],
)
def test_what_is_named_is_read_all_the_same(read, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    write(tmp_path / "_data", "a.jsonl")
    write(tmp_path / "plain", "_b.jsonl", "c.jsonl", "README.txt")
    assert read(pattern) == expected


def test_where_nothing_is_left_that_is_told(read, tmp_path: Path) -> None:
    write(tmp_path / "data", "README.txt", "_temporary/a.jsonl")
    with pytest.raises(BadInputError, match="matches no text file"):
        read("data")


@pytest.mark.parametrize("other", ["a.jsonl.gz", "a.jsonl.zst", "A.jsonl"])
def test_the_same_text_in_two_packings_is_refused(read, tmp_path: Path, other: str) -> None:
    write(tmp_path, "a.jsonl", other)
    with pytest.raises(BadInputError, match=r"a\.jsonl.* seem to be the same text twice: narrow the pattern"):
        read("*.jsonl*")


def test_a_link_to_what_is_read_already_is_left_out(read, tmp_path: Path) -> None:
    write(tmp_path / "data/2024", "a.jsonl")
    (tmp_path / "data/latest").symlink_to("2024")
    (tmp_path / "data/2024/b.jsonl").symlink_to("a.jsonl")
    assert read("data") == ["a.jsonl"]


def test_a_loop_of_links_is_walked_once(read, tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", "deep/b.jsonl")
    (tmp_path / "data/deep/up").symlink_to("..")
    (tmp_path / "data/deep/self").symlink_to("self")
    assert read("data") == ["a.jsonl", "deep/b.jsonl"]


@pytest.mark.parametrize("target", ["nowhere", "b.jsonl"])
def test_a_link_that_leads_nowhere_is_told(read, tmp_path: Path, target: str) -> None:
    write(tmp_path / "data", "a.jsonl")
    (tmp_path / "data/b.jsonl").symlink_to(target)
    with pytest.raises(BadInputError, match=r"b\.jsonl is a link that leads nowhere"):
        read("data/*.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(read, tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", "deep/b.jsonl")
    (tmp_path / "data/deep").chmod(0)
    with pytest.raises(StoreError, match=r"deep cannot be read \(Permission denied\)"):
        read("data")


def test_a_pattern_takes_folders_that_are_named_as_files(read, tmp_path: Path) -> None:
    """As Spark writes a table: x.parquet/part-0.parquet."""
    write(tmp_path, "x.jsonl/part-0.jsonl", "x.jsonl/_SUCCESS", "y.jsonl", "z/part.jsonl")
    assert read("*.jsonl") == ["x.jsonl/part-0.jsonl", "y.jsonl"]
    assert read("*") == ["y.jsonl"]


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("with a blank", "with a blank"),
        ("with a blank", "with%20a%20blank"),
        ("wört", "wört"),
        ("wört", "w%C3%B6rt"),
        ("100%", "100%"),
        ("x/../with a blank", "x/../with a blank"),
    ],
)
def test_folders_of_any_name_can_be_named(read, tmp_path: Path, folder: str, written: str) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / folder, "a.jsonl")
    assert read(f"{written}/*.jsonl") == ["a.jsonl"]
    assert read(f"{written}/a.jsonl") == ["a.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_can_be_named(read, tmp_path: Path) -> None:
    write(tmp_path, "a [1].jsonl", "a 1.jsonl")
    assert read("a [1].jsonl") == ["a [1].jsonl"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://trenchcoat/x/../y/*.jsonl", r"has \.\. where it cannot be followed"),
        ("s3://../y/*.jsonl", r"has \.\. where it cannot be followed"),
        ("file:///x/*/../y.jsonl", r"has \.\. where it cannot be followed"),
        ("file:///x/[z-a].jsonl", r"is no pattern \(bad character range z-a"),
        ("file:///x/%00.jsonl", "holds a NUL"),
    ],
)
def test_a_pattern_that_cannot_be_is_told(make_spec, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        open_text(make_spec(data={"source": source}), FolderStore(tmp_path / "trenchcoat"))


class ShuffledStore(FolderStore):
    """A store that lists its objects in any order, as S3 stores of some makers do."""

    def list(self, prefix: str) -> Iterator[Entry]:
        found = [*super().list(prefix)]
        random.shuffle(found)
        yield from found

    def in_bucket(self, bucket: str) -> "ShuffledStore":
        return ShuffledStore(self.root.parent / bucket)


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl"])
def test_the_order_does_not_follow_the_listing(make_spec, tmp_path: Path, pattern: str) -> None:
    names = [f"{letter}.jsonl" for letter in "abcdefghijkl"]
    write(tmp_path / "corpus", *names)
    spec = make_spec(data={"source": f"s3://corpus/{pattern or '**'}"})
    assert documents(open_text(spec, ShuffledStore(tmp_path / "trenchcoat"))) == names


def test_files_that_come_between_two_attempts_change_nothing(make_spec, tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "d.jsonl")
    spec, store = make_spec(data={"source": f"file://{tmp_path}/*.jsonl"}), FolderStore(tmp_path / "unused")
    version = open_text(spec, store).version
    write(tmp_path, "a.jsonl", "c.jsonl")
    assert documents(open_text(spec, store, version)) == ["b.jsonl", "d.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), r"d\.jsonl is gone since an earlier attempt has read the text in part"),
        (lambda file: file.write_text("{}"), r"d\.jsonl has 2 bytes in place of 20 since an earlier attempt"),
    ],
)
def test_files_that_go_or_change_between_two_attempts_are_told(
    make_spec, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    write(tmp_path, "b.jsonl", "d.jsonl")
    spec, store = make_spec(data={"source": f"file://{tmp_path}/*.jsonl"}), FolderStore(tmp_path / "unused")
    version = open_text(spec, store).version
    change(tmp_path / "d.jsonl")
    with pytest.raises(BadInputError, match=message):
        open_text(spec, store, version)
