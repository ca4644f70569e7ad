"""The safetensors format, against the safetensors library."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from trenchcoat_trainer.store import FolderStore
from trenchcoat_trainer.tensors.headers import TensorRange, build_header, parse_header, read_header
from trenchcoat_trainer.tensors.serialization import DTYPES, pack, pieces, unpack

TENSORS = {
    "bf16": torch.randn(3, 5).bfloat16(),
    "fp32": torch.randn(2, 2, 2),
    "int": torch.arange(7, dtype=torch.int32),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(3.5),
}


def test_packing_and_unpacking_gives_the_same_tensors_and_metadata() -> None:
    tensors, metadata = unpack(pack(TENSORS, {"state": "{}"}))
    assert metadata == {"state": "{}"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@given(
    st.dictionaries(
        st.text("abcXYZ0._-", max_size=8),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=8,
    )
)
def test_pieces_are_the_bytes_that_the_library_packs(what: dict[str, tuple[str, list[int]]]) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(DTYPES[dtype]) for name, (dtype, shape) in what.items()}
    assert b"".join(pieces(tensors)) == pack(tensors)


def test_pieces_of_transposed_tensors_are_what_the_library_packs() -> None:
    tensors = {"t": torch.arange(12.0).view(3, 4).T, "x": torch.ones(3, dtype=torch.bfloat16)}
    assert b"".join(pieces(tensors)) == pack({name: tensor.contiguous() for name, tensor in tensors.items()})


def test_pieces_copy_no_memory() -> None:
    tensor = torch.zeros(1000)
    _, memory = pieces({"t": tensor})
    tensor.fill_(1)
    assert bytes(memory) == tensor.numpy().tobytes()


def test_views_and_transposed_tensors_can_be_packed() -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors, _ = unpack(pack({"t": whole.T, "row": whole[1]}))
    assert torch.equal(tensors["t"], whole.T)
    assert torch.equal(tensors["row"], whole[1])


def test_ranges_of_a_file_are_where_the_library_put_the_bytes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    ranges = read_header(FolderStore(tmp_path), "x.safetensors", (tmp_path / "x.safetensors").stat().st_size)
    data = (tmp_path / "x.safetensors").read_bytes()
    place = ranges["int"]
    assert data[place.offset : place.offset + place.length] == TENSORS["int"].numpy().tobytes()


def test_a_header_longer_than_the_first_request_is_read_whole(tmp_path: Path) -> None:
    many = {f"a.rather.long.name.of.a.tensor.{index}": torch.zeros(1) for index in range(5000)}
    file = tmp_path / "x.safetensors"
    save_file(many, file)
    assert read_header(FolderStore(tmp_path), "x.safetensors", file.stat().st_size).keys() == many.keys()


def test_a_header_of_ours_is_read_by_the_library() -> None:
    first, second = torch.randn(2, 3), torch.arange(4, dtype=torch.int64)
    header = build_header(
        {"first": TensorRange("F32", (2, 3), 1000, 24), "second": TensorRange("I64", (4,), 77, 32)}
    )
    assert len(header) % 8 == 0
    loaded = load(header + first.numpy().tobytes() + second.numpy().tobytes())
    assert torch.equal(loaded["first"], first)
    assert torch.equal(loaded["second"], second)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_cut_objects_are_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"few|cut short"):
        unpack(pack(TENSORS)[:cut])


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="does not begin as a safetensors object"):
        parse_header(b"PK\x03\x04 this is a zip file, perhaps a pickled checkpoint")
