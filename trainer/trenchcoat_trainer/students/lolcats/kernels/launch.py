"""What every kernel is started with: the problem, how it is cut into tiles, strides and number formats."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""True when Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1 at import)."""

LOG2_E = 1.4426950408889634

CHUNK = 32 if INTERPRETED else 64
"""C, tokens of a block of `states`; the tiles of the kernels that read states must divide it."""


class Problem(NamedTuple):
    """What forward and backward read; the teacher's tensors are the student's own where they are shared."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_teacher: torch.Tensor
    k_teacher: torch.Tensor
    v_teacher: torch.Tensor
    w_q: torch.Tensor
    w_k: torch.Tensor
    window_factor: torch.Tensor
    phi_q: torch.Tensor
    phi_k: torch.Tensor


class Rows(NamedTuple):
    """Row statistics [B, H, T] that the forward leaves to the backward.

    Attributes:
        lse: base-2 logarithm of the sum of the teacher's exponentials.
        maximum: the student's largest score in the window.
        rz: 1 over the sum of the student's weights.
        argmax: the key of `maximum`, int32.
        dy: the product of the student's output with its gradient.
    """

    lse: torch.Tensor
    maximum: torch.Tensor
    rz: torch.Tensor
    argmax: torch.Tensor
    dy: torch.Tensor


class Wanted(NamedTuple):
    """What the backward is to give: what nobody trains costs up to half of it."""

    q: bool
    k: bool
    v: bool
    maps: bool
    """Of the feature maps and the window factor."""

    @property
    def student(self) -> bool:
        """Whether the student trains beyond its maps."""
        return self.q or self.k or self.v

    @property
    def key_features(self) -> bool:
        """Whether a gradient passes through the features of keys."""
        return self.k or self.maps

    @property
    def features(self) -> bool:
        """Whether a gradient passes through any features; that of keys' needs what the queries' leaves."""
        return self.q or self.key_features


class Mode(NamedTuple):
    """Which of the kernels' parts are wanted."""

    window_size: int
    teacher: bool
    separate: bool
    wanted: Wanted
    dropped: bool = False


class Tiles(NamedTuple):
    """How one kernel is cut: rows and keys of a tile, warps, pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


TILES = {
    "below": Tiles(64, 64, 4, 2),
    "forward": Tiles(64, 32, 4, 2),
    "query": Tiles(64, 32, 4, 2),
    "key": Tiles(64, 64, 4, 2),
}
"""Fastest of those tried on an H200: 1024 tokens, bf16, heads of 64 and 128, 64 features a half."""

NARROW_TILES = {**TILES, "below": Tiles(64, 32, 4, 3)}
"""Where heads have 64 dimensions or fewer, likewise: a third stage fits."""

HEAVY_TILES = {
    "below": Tiles(64, 32, 4, 2),
    "forward": Tiles(64, 32, 4, 2),
    "query": Tiles(64, 32, 4, 2),
    "key": Tiles(32, 64, 4, 2),
}
"""Where more than 64 features a half must be held, which was not tried beyond that."""


def choose_tiles(kernel: str, x: Problem) -> Tiles:
    """Return the tiles of `kernel` for a problem."""
    if INTERPRETED:
        return Tiles(32, 16, 4, 1) if kernel != "key" else Tiles(16, 32, 4, 1)
    if x.q.dtype == torch.float32:
        return Tiles(32, 32, 8, 1)
    if x.w_q.shape[-1] > 64:
        return HEAVY_TILES[kernel]
    return (NARROW_TILES if x.q.shape[-1] <= 64 else TILES)[kernel]


def precision(dtype: torch.dtype) -> str:
    """Return how a product of fp32 operands is computed; bf16 operands take no notice.

    Three tf32 products on the matrix units keep nearly every bit of fp32 and take a quarter of the time.
    """
    return "ieee" if INTERPRETED or dtype != torch.float32 else "tf32x3"


def bht(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the strides of batch, head and token; the last dimension must be dense."""
    return x.stride(0), x.stride(1), x.stride(2)


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return `x` with its last dimension dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def like_projection(q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Allocate [B, H, T, D] as [B, T, H, D] in memory, the form that o_proj reads."""
    batch, heads, tokens, head_dim = q.shape
    return q.new_empty(batch, tokens, heads, head_dim, dtype=dtype).transpose(1, 2)


def padded(feature_dim: int) -> int:
    """Return E: the next power of two, and no less than the matrix units take."""
    return max(16, triton.next_power_of_2(feature_dim))


def constants(x: Problem, mode: Mode, tiles: Tiles) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    feature_dim = x.w_q.shape[-1]
    return {
        "W": mode.window_size, "D": x.q.shape[-1], "F": feature_dim, "E": padded(feature_dim),
        "M": tiles.rows, "N": tiles.keys, "DROPPED": mode.dropped,
        "PRECISION": precision(x.q.dtype), "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


def student_constants(x: Problem, mode: Mode, tiles: Tiles) -> dict[str, Any]:
    """Return what a kernel of the student's attention is compiled for."""
    own = {"C": CHUNK, "TEACHER": mode.teacher, "SEPARATE": mode.separate}
    return own | constants(x, mode, tiles)


def sizes(x: Problem) -> tuple[int, int, int, int, float]:
    """Return T, H, query heads by key/value head and by key map, and the scale of scores in base 2."""
    heads, tokens, head_dim = x.q.shape[1:]
    maps = x.phi_k.shape[1]
    return tokens, heads, heads // x.k.shape[1], heads // maps, head_dim**-0.5 * LOG2_E
