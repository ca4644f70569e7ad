"""The headers of the safetensors format, which say where each tensor's bytes stand; without torch."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trenchcoat_trainer.store.base import Readable

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
# Most headers fit, and then one request fetches a header of unknown length.
_HEADER_GUESS = 256 * 1024


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
        return {name: _range(item, end) for name, item in header.items()}, metadata
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
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


def read_header(store: Readable, path: str) -> dict[str, TensorRange]:
    """Tensor ranges of a stored safetensors object, reading its beginning alone.

    Raises:
        ValueError: the object is no safetensors object.
        NotFoundError: there is no such object.
    """
    start = store.read(path, 0, _HEADER_GUESS)
    missing = header_end(start) - len(start)
    if missing > 0:
        start += store.read(path, len(start), missing)
    return parse_header(start)[0]


def _range(item: dict[str, Any], end: int) -> TensorRange:
    first, last = item["data_offsets"]
    return TensorRange(str(item["dtype"]), tuple(item["shape"]), end + first, last - first)
