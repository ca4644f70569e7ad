"""Tensors as safetensors objects in memory."""

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save

from trenchcoat_trainer.tensors.headers import TensorRange, build_header, parse_header

DTYPES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by the format's names, in the order in which the library writes tensors."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}


def pack(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors object; equal tensors give equal bytes."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(flat, metadata))


def pieces(tensors: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """What `pack` returns, in pieces: the header, and each tensor's own memory, which is not copied.

    The library copies all bytes twice and lets no other thread run meanwhile.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    names = sorted(flat, key=lambda name: (_ORDER[flat[name].dtype], name))
    places = {
        name: TensorRange(_NAMES[flat[name].dtype], tuple(flat[name].shape), 0, flat[name].nbytes)
        for name in names
    }
    return [build_header(places), *(byte_view(flat[name]) for name in names if flat[name].nbytes)]


def unpack(data: bytes | bytearray | np.ndarray) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors object; the tensors share `data`, or one copy of it where bytes.

    Raises:
        ValueError: the bytes are no safetensors object, or too few.
    """
    ranges, metadata = parse_header(data.data if isinstance(data, np.ndarray) else memoryview(data))
    buffer = bytearray(data) if isinstance(data, bytes) else data
    return {name: _view(buffer, name, place) for name, place in ranges.items()}, metadata


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to read into."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _view(buffer: bytearray | np.ndarray, name: str, place: TensorRange) -> torch.Tensor:
    dtype = DTYPES.get(place.dtype)
    if dtype is None:
        raise ValueError(f"tensor {name} has the unknown type {place.dtype}")
    if place.offset + place.length > len(buffer):
        raise ValueError(f"tensor {name} is cut short")
    if place.length == 0:
        return torch.empty(place.shape, dtype=dtype)
    count = place.length // dtype.itemsize
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=place.offset).view(place.shape)
