"""Memory for large objects that is used again when nothing refers to it any more.

Fresh memory is cleared by the kernel page by page, which takes longer than to fill it from a local store.
"""

import weakref
from collections import deque

import numpy as np


class RecycledMemory:
    """Hands out memory; may be used from several threads."""

    def __init__(self, spare: int) -> None:
        """`spare`: blocks to keep for later, at most."""
        self._free: deque[np.ndarray] = deque(maxlen=spare)

    def take(self, size: int) -> np.ndarray:
        """Memory of `size` bytes with any content, uint8 [size].

        It is used again once the array itself is gone. Make tensors of it with `torch.frombuffer`, which keep
        the array; a slice would not keep it.
        """
        block = self._block(size)
        array = block[:size]
        # A deque may be used while a finalizer interrupts its use, a lock might wait for itself.
        weakref.finalize(array, self._free.append, block).atexit = False
        return array

    def _block(self, size: int) -> np.ndarray:
        # Blocks of another size than is wanted now go: the last object of a boundary is smaller, no other.
        while self._free:
            try:
                block = self._free.popleft()
            except IndexError:
                break
            if size <= len(block) <= 2 * size:
                return block
        return np.empty(size, np.uint8)
