"""The headers of the safetensors format, which say where each tensor's bytes stand; without torch."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trenchcoat_trainer.store.base import Readable

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
# Most headers fit, and then one request fetches a header of unknown length.
_HEADER_GUESS = 256 * 1024
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of a number by the format's names of types."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Where one tensor's bytes stand within an object."""

    dtype: str
    """As safetensors writes it, such as BF16."""
    shape: tuple[int, ...]
    offset: int
    """From the beginning of the object."""
    length: int
    """Bytes."""


def parse_header(data: bytes | memoryview) -> tuple[dict[str, TensorRange], dict[str, str]]:
    """Tensor ranges and metadata from the beginning of a safetensors object.

    Raises:
        ValueError: the bytes do not begin with a whole header.
    """
    end = header_end(data)
    if len(data) < end:
        raise ValueError(f"a safetensors header of {end} bytes is cut short at {len(data)}")
    try:
        header = json.loads(bytes(data[_LENGTH_BYTES:end]))
        metadata = header.pop("__metadata__", {})
        return {name: _range(item, end) for name, item in header.items()}, metadata or {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the safetensors header cannot be read: {error!r}") from error


def header_end(data: bytes | memoryview) -> int:
    """Bytes from the beginning of a safetensors object to its first tensor.

    Raises:
        ValueError: this is no safetensors object.
    """
    if len(data) < _LENGTH_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for a safetensors object")
    length: int = struct.unpack("<Q", bytes(data[:_LENGTH_BYTES]))[0]
    if length > _MAX_HEADER_BYTES:
        raise ValueError("it does not begin as a safetensors object does")
    return _LENGTH_BYTES + length


def build_header(tensors: Mapping[str, TensorRange]) -> bytes:
    """The header of an object in which these tensors' bytes follow one another in the given order."""
    header, offset = {}, 0
    for name, place in tensors.items():
        offsets = [offset, offset + place.length]
        header[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": offsets}
        offset += place.length
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format wants tensors aligned to 8 bytes, and allows spaces at the end of the header.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(store: Readable, path: str, size: int) -> dict[str, TensorRange]:
    """Tensor ranges of a stored safetensors object of `size` bytes, reading its beginning alone.

    Raises:
        ValueError: the object is no safetensors object, or its bytes are not those that its header tells of.
        NotFoundError: there is no such object.
    """
    start = read_beginning(store, path)
    ranges = parse_header(start)[0]
    check_layout(ranges, header_end(start), size)
    return ranges


def read_beginning(store: Readable, path: str) -> bytes:
    """The beginning of a stored safetensors object, its whole header at least, for `parse_header`.

    Raises:
        ValueError: the object is no safetensors object.
        NotFoundError: there is no such object.
    """
    start = store.read(path, 0, _HEADER_GUESS)
    missing = header_end(start) - len(start)
    return start + store.read(path, len(start), missing) if missing > 0 else start


def check_layout(tensors: Mapping[str, TensorRange], start: int, size: int) -> None:
    """Find out whether tensors fill an object as the format wants it, as the safetensors library does.

    Args:
        tensors: all of the object's.
        start: where the first must begin.
        size: bytes of the object, all of which must be a tensor's.

    Raises:
        ValueError: a type is unknown, a shape does not fit its bytes, or there are holes, overlaps, bytes too
            few or too many.
    """
    at = start
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].length)):
        if place.dtype not in _BITS:
            raise ValueError(f"tensor {name} has the unknown type {place.dtype}")
        if math.prod(place.shape) * _BITS[place.dtype] != 8 * place.length:
            raise ValueError(f"tensor {name} has {place.length} bytes, which its shape and type do not make")
        if place.offset != at:
            fault = "overlaps the one before" if place.offset < at else "does not follow the one before"
            raise ValueError(f"tensor {name} {fault}")
        at += place.length
    if size < at:
        raise ValueError(f"it is cut short: {size} bytes of {at}")
    if size > at:
        raise ValueError(f"{size - at} bytes follow its last tensor")


def _range(item: dict[str, Any], end: int) -> TensorRange:
    first, last = item["data_offsets"]
    shape = tuple(item["shape"])
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)) or last < first:
        raise ValueError(f"{item!r} is no place of a tensor")
    return TensorRange(str(item["dtype"]), shape, end + first, last - first)
