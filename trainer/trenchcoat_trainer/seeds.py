"""Random streams that are pure functions of what they are for."""

import hashlib

import torch


def generator(*parts: object) -> torch.Generator:
    """Return a CPU generator whose stream is a pure function of `parts`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def derived_seed(*parts: object) -> int:
    """Hash `parts` to a 63-bit seed, so that streams for different purposes are independent."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
