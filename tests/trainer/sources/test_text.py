"""Documents from files of every kind."""

import codecs
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.sources import formats
from trenchcoat_trainer.sources.text import Text, open_text
from trenchcoat_trainer.store import FolderStore, S3Store

TOP = Path(__file__).parents[3]
DOCUMENTS = ["first", "zweiter — ü", "third\nwith lines"]


def jsonl(documents: list[str]) -> bytes:
    return "".join(
        json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents
    ).encode()


def parquet(rows: list[dict], kind: pa.DataType | None = None, **options) -> bytes:
    """A Parquet file with page checksums."""
    names = list(rows[0])
    columns = [pa.array([row[name] for row in rows], kind or pa.string()) for name in names]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names), sink, write_page_checksum=True, **options)
    return sink.getvalue()


def not_utf8(kind: pa.DataType) -> bytes:
    """A Parquet file whose second value is no UTF-8, which the library writes without a look."""
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 2, 4)))
    values = pa.Array.from_buffers(kind, 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])
    sink = io.BytesIO()
    pq.write_table(pa.table([values], ["text"]), sink)
    return sink.getvalue()


def long_window(data: bytes) -> bytes:
    """As `zstd --long=31` packs a stream."""
    options = zstandard.ZstdCompressionParameters(compression_level=1, window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    packed = packer.compress(data) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    return packed


def damaged(data: bytes) -> bytes:
    """A file whose first page has a flipped bit."""
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


def documents(text: Text) -> list[str]:
    return [document for part in range(text.parts) for document in text.part(part)]


@pytest.fixture
def read(make_spec, tmp_path: Path):
    """Reads what a source names, relative to tmp_path."""

    def read_it(pattern: str, **data: str) -> list[str]:
        spec = make_spec(data={"source": f"file://{tmp_path}/{pattern}", **data})
        return documents(open_text(spec, FolderStore(tmp_path / "unused")))

    return read_it


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("a.jsonl.zst", long_window),
        # Names that others use for the same.
        ("a.json.gz", gzip.compress),
        ("a.ndjson", bytes),
        ("A.JSONL", bytes),
        ("A.JSONL.GZ", gzip.compress),
        # With a byte-order mark, as some systems write it.
        ("a.jsonl", lambda data: codecs.BOM_UTF8 + data),
        ("a.jsonl.gz", lambda data: gzip.compress(codecs.BOM_UTF8 + data)),
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


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_gives_the_same_documents(read, tmp_path: Path, compression: str, kind: pa.DataType) -> None:
    rows = [{"text": text} for text in (*DOCUMENTS, "", None, *DOCUMENTS * 50)]
    data = parquet(rows, kind, compression=compression, row_group_size=37)
    (tmp_path / "a.parquet").write_bytes(data)
    assert read("a.parquet") == [*DOCUMENTS, *DOCUMENTS * 50]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_parquet_without_the_mark_of_text_is_read_all_the_same(
    read, tmp_path: Path, kind: pa.DataType
) -> None:
    """As writers do that know no strings, such as older ones of Spark, Hive and Impala."""
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": text.encode()} for text in DOCUMENTS], kind))
    assert read("a.parquet") == DOCUMENTS


def test_a_byte_order_mark_is_no_text(read, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "wört".encode())
    assert read("a.txt") == ["wört"]


def test_parquet_takes_the_column_that_is_named(read, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": "no", "content": "yes"}]))
    assert read("*.parquet", textField="content") == ["yes"]


def test_parquet_in_a_store_is_read_by_ranges(make_spec, minio_server, monkeypatch) -> None:
    monkeypatch.setattr(formats, "PARQUET_BUFFER_BYTES", 4096)
    store = minio_server.store()
    texts = [f"{number} " * 300 for number in range(500)]
    rows = [{"text": text, "unwanted": text[::-1]} for text in texts]
    data = parquet(rows, compression="none", row_group_size=100, use_dictionary=False)
    store.write("corpora/a.parquet", data)
    lengths = []
    original = S3Store.stream

    def stream(self, path, offset=0, length=None):
        lengths.append(length)
        return original(self, path, offset, length)

    monkeypatch.setattr(S3Store, "stream", stream)
    assert documents(open_text(make_spec(data={"source": "s3://trenchcoat/corpora/"}), store)) == texts
    assert max(lengths) <= 200_000
    assert sum(lengths) < 0.7 * len(data)


def test_a_record_that_is_too_long_is_named(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["short", "x" * 200]))
    with pytest.raises(BadInputError, match=r"a\.jsonl, line 2, is longer than 100 bytes: cut the document"):
        read("a.jsonl")
    (tmp_path / "a.parquet").write_bytes(parquet([{"text": "short"}, {"text": "x" * 200}]))
    with pytest.raises(BadInputError, match=r"a\.parquet, row 2, is longer than 100 characters"):
        read("a.parquet")


def test_plain_text_without_a_line_break_is_cut_all_the_same(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "PLAIN_DOCUMENT_CHARACTERS", 100)
    (tmp_path / "a.txt").write_text("wört " * 1000)
    found = read("a.txt")
    assert "".join(found) == "wört " * 1000
    assert max(map(len, found)) == 400


RESIDENT = """
import sys
from trenchcoat_trainer.sources.formats import read_documents
from trenchcoat_trainer.store import FolderStore
from pathlib import Path
import pyarrow.parquet
sys.path.append(sys.argv[3])
from tests.trainer.helpers.peak_memory import peak
folder, name = sys.argv[1:3]
before = peak()
size = sum(len(text) for text in read_documents(FolderStore(Path(folder)), name, "text"))
print(size, (peak() - before) >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.parquet"])
def test_a_file_of_any_size_is_read_in_little_memory(tmp_path: Path, name: str) -> None:
    """200 MB in a single line, or a single row group."""
    megabyte = "0123456789abcde " * 65536
    opener = {".gz": gzip.open, ".zst": zstandard.open}.get(Path(name).suffix, open)
    if name == "a.parquet":
        # Pages of about a megabyte, as a writer ends them that looks often enough: one is read as a whole.
        schema, often = pa.schema([("text", pa.string())]), 8
        with pq.ParquetWriter(tmp_path / name, schema, write_batch_size=often) as writer:
            rows = [f"{number} {megabyte[:100_000]}" for number in range(2000)]
            writer.write_table(pa.table({"text": rows}), row_group_size=2000)
    else:
        with opener(tmp_path / name, "wb") as file:
            for _ in range(200):
                file.write(jsonl([megabyte]) if "json" in name else megabyte.encode())
    words = [sys.executable, "-c", RESIDENT, tmp_path, name, TOP]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=500)
    size, megabytes = map(int, run.stdout.split())
    assert size > 200_000_000
    assert megabytes < 64


def test_the_text_may_stand_in_another_field(read, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "here", "text": 1}\n\n{"content": "there"}\n')
    assert read("a.jsonl", textField="content") == ["here", "there"]


def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "PLAIN_DOCUMENT_CHARACTERS", 100)
    paragraphs = [f"Paragraph {number}.\nIts second line.\n\n" for number in range(50)]
    (tmp_path / "a.txt").write_text("".join(paragraphs))
    documents = read("a.txt")
    assert "".join(documents) == "".join(paragraphs)
    assert len(documents) > 10
    assert all(document.startswith("Paragraph") for document in documents)


def test_plain_text_without_blank_lines_is_cut_at_lines(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "PLAIN_DOCUMENT_CHARACTERS", 100)
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
    assert documents(open_text(spec, store)) == ["from the bucket"]


def nested(column: str) -> bytes:
    """A Parquet file with a column of structures."""
    sink = io.BytesIO()
    pq.write_table(pa.table({column: [{"text": "x"}]}), sink)
    return sink.getvalue()


def test_no_path_leads_into_a_column(read, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(nested("doc"))
    with pytest.raises(
        BadInputError, match=r"column 'doc' is nested .*: write the text to a column of its own"
    ):
        read("a.parquet", textField="doc.text")


def test_halves_of_characters_are_read_as_the_mark_of_what_is_none(read, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert read("a.jsonl") == ["a\ufffdb", "\U0001f600"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text", "whose name ends in none of"),
        ("a.parquet", b"PAR1", "is no Parquet file, damaged"),
        (
            "a.parquet",
            parquet([{"body": "x"}]),
            r"has no column 'text' \(it has body\): set spec.data.textField",
        ),
        ("a.parquet", parquet([{"text": 3}], pa.int64()), "row 1: field 'text' is no string"),
        ("a.parquet", not_utf8(pa.string()), "row 2: field 'text' is not UTF-8"),
        ("a.parquet", not_utf8(pa.binary()), "row 2: field 'text' is not UTF-8"),
        ("a.parquet", damaged(parquet([{"text": "x" * 999}])), "is no Parquet file, damaged"),
        ("a.jsonl.gz", gzip.compress(jsonl(DOCUMENTS * 99))[:-20], "cannot be unpacked"),
        ("a.jsonl.gz", b"no gzip at all", "cannot be unpacked"),
        ("a.jsonl.zst", b"no zstd at all", "cannot be unpacked"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(jsonl(DOCUMENTS * 99))[:-20], "is cut short"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "line 2, is not UTF-8"),
        *((f"a.{kind}", b"", "is empty") for kind in ("jsonl.gz", "txt.zst")),
        ("a.parquet", b"", "is no Parquet file"),
        ("a.parquet", nested("text"), "column 'text' is nested .*: write the text to a column of its own"),
        ("a.jsonl", b"[" * 100_000, "line 1, is not JSON"),
        ("a.jsonl", b'["text"]', "line 1, has no field 'text'"),
        ("a.json", b'[\n{"text": "x"}\n]', "line 1, is not JSON .* every line must be a record of its own"),
        ("a.txt", "plain".encode("utf-16-le"), "holds a NUL.* UTF-16, convert it"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16-le"), "line 1, holds a NUL.* UTF-16, convert it"),
        ("a.txt", "plain".encode("utf-16"), "is not UTF-8"),
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
