"""Which tensor goes into which file of a sharded checkpoint."""

from dataclasses import dataclass, field

import torch


@dataclass
class File:
    """One safetensors file."""

    name: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each tensor, by name."""


def plan_files(tensors: dict[str, torch.Tensor], max_bytes: int, stem: str = "model") -> list[File]:
    """Fill files in the tensors' order; a tensor larger than `max_bytes` gets a file of its own.

    Args:
        tensors: all tensors, on any device, meta included.
        max_bytes: largest size of a file's tensors together.
        stem: what the files' names begin with.
    """
    files = [File()]
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.dtype.itemsize
        if files[-1].sizes and sum(files[-1].sizes.values()) + size > max_bytes:
            files.append(File())
        files[-1].sizes[name] = size
    for number, file in enumerate(files, start=1):
        file.name = f"{stem}-{number:05d}-of-{len(files):05d}.safetensors"
    return files
