"""Documents from files of every kind."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources import text
from trenchcoat_trainer.sources.text import open_text
from trenchcoat_trainer.store import FolderStore

DOCUMENTS = ["first", "zweiter — ü", "third\nwith lines"]


def jsonl(documents: list[str]) -> bytes:
    return "".join(
        json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents
    ).encode()


@pytest.fixture
def read(make_spec, tmp_path: Path):
    """Reads what a source names, relative to tmp_path."""

    def read_it(pattern: str, **data: str) -> list[str]:
        spec = make_spec(data={"source": f"file://{tmp_path}/{pattern}", **data})
        return list(open_text(spec, FolderStore(tmp_path / "unused")).documents())

    return read_it


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        # Compressors that work in parallel write several frames.
        ("b.jsonl.gz", lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:])),
        (
            "b.jsonl.zst",
            lambda data: b"".join(map(zstandard.ZstdCompressor().compress, (data[:20], data[20:]))),
        ),
    ],
)
def test_documents_are_the_same_however_they_are_packed(read, tmp_path: Path, name: str, pack) -> None:
    (tmp_path / name).write_bytes(pack(jsonl(DOCUMENTS)))
    assert read(name) == DOCUMENTS


def test_the_text_may_stand_in_another_field(read, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "here", "text": 1}\n\n{"content": "there"}\n')
    assert read("a.jsonl", textField="content") == ["here", "there"]


def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(text, "PLAIN_DOCUMENT_CHARACTERS", 100)
    paragraphs = [f"Paragraph {number}.\nIts second line.\n\n" for number in range(50)]
    (tmp_path / "a.txt").write_text("".join(paragraphs))
    documents = read("a.txt")
    assert "".join(documents) == "".join(paragraphs)
    assert len(documents) > 10
    assert all(document.startswith("Paragraph") for document in documents)


def test_plain_text_without_blank_lines_is_cut_at_lines(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(text, "PLAIN_DOCUMENT_CHARACTERS", 100)
    (tmp_path / "a.txt").write_text("a line of text\n" * 200)
    documents = read("a.txt")
    assert "".join(documents) == "a line of text\n" * 200
    assert max(map(len, documents)) <= 4 * 100 + 20


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["1", "2"]),
        ("?.jsonl", ["1", "2"]),
        ("[!b].jsonl", ["1"]),
        ("**/*.jsonl", ["1", "2", "3", "4"]),
        ("deep/**", ["3", "4"]),
        ("deep/*.jsonl", ["3"]),
        ("deep", ["3", "4"]),
        ("b.jsonl", ["2"]),
    ],
)
def test_patterns_choose_files_in_order(read, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name, content in (("a", "1"), ("b", "2"), ("deep/c", "3"), ("deep/er/d", "4"), ("deeper/e.x", "5")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([content]))
    (tmp_path / "deeper/e.x.jsonl").unlink()
    assert read(pattern) == expected


def test_text_in_another_bucket_of_the_store_is_found(make_spec, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store" / "trenchcoat")
    store.in_bucket("corpora").write("red/a.jsonl", jsonl(["from the bucket"]))
    spec = make_spec(data={"source": "s3://corpora/red/*.jsonl"})
    assert list(open_text(spec, store).documents()) == ["from the bucket"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1", "whose name ends in none of"),
        ("a.jsonl.gz", gzip.compress(jsonl(DOCUMENTS * 99))[:-20], "cannot be unpacked"),
        ("a.jsonl.gz", b"no gzip at all", "cannot be unpacked"),
        ("a.jsonl.zst", b"no zstd at all", "cannot be unpacked"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(jsonl(DOCUMENTS * 99))[:-20], "is cut short"),
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    read, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=message) as caught:
        read("a.*")
    assert name in str(caught.value)


def test_a_pattern_without_a_match_is_told(read) -> None:
    with pytest.raises(BadInputError, match=r"spec\.data\.source .*/none-\*\.jsonl matches no text file"):
        read("none-*.jsonl")
