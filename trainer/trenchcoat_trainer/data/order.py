"""The order in which sequences are read: a pure function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Piece:
    """Sequences to read from one group, in the order to read them."""

    group: int
    rows: np.ndarray
    """Positions within the group, int64."""


@dataclass(frozen=True, slots=True)
class Order:
    """Sequences stand in groups of `group_size`, the last may be smaller; a group is read as a whole.

    Groups are permuted, then the sequences within each, so that a reader holds few groups at a time.
    """

    sequences: int
    group_size: int
    seed: int

    @property
    def groups(self) -> int:
        """Number of groups."""
        return -(-self.sequences // self.group_size)

    def length(self, group: int) -> int:
        """Sequences in a group."""
        return min(self.group_size, self.sequences - group * self.group_size)

    def pieces(
        self, epoch: int, *, skip: int = 0, shuffle: bool = True, without: np.ndarray | None = None
    ) -> Iterator[Piece]:
        """Every sequence of an epoch but the first `skip` of its order, group by group.

        `without` says of each sequence whether it is left out altogether, bool [sequences].
        """
        groups = np.arange(self.groups)
        if shuffle:
            groups = np.random.default_rng([self.seed, epoch]).permutation(groups)
        for group in groups.tolist():
            rows = np.arange(self.length(group))
            if without is not None:
                rows = rows[~without[group * self.group_size :][: len(rows)]]
            if skip >= len(rows):
                skip -= len(rows)
                continue
            if shuffle:
                rows = np.random.default_rng([self.seed, epoch, group + 1]).permutation(rows)
            yield Piece(group, rows[skip:])
            skip = 0
