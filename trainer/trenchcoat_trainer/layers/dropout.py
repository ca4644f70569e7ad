"""Dropout that seeds in memory decide: what is dropped does not depend on what ran before, or beside it.

A sequence has a seed of its own, so that sequences which run together drop what they would by themselves; a
CUDA graph reads new seeds at every replay.
"""

from __future__ import annotations

from typing import Any

import torch

from trenchcoat_trainer.layers.fused import HAVE_TRITON, use_triton

if HAVE_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _dropout_kernel(x_ptr, y_ptr, seeds_ptr, salt, dropped, scale, width, BLOCK: tl.constexpr):
        sequence = tl.program_id(1).to(tl.int64)
        first = tl.program_id(0) * 8 * BLOCK
        column = tl.arange(0, BLOCK)
        # One round of Philox, which takes longer than the memory, gives four numbers, each of them two.
        numbers = tl.randint4x(tl.load(seeds_ptr + sequence) + salt, tl.program_id(0) * BLOCK + column)
        for i in tl.static_range(8):
            at = first + i * BLOCK + column
            x = tl.load(x_ptr + sequence * width + at, mask=at < width, other=0.0)
            number = (numbers[i // 2] >> (16 * (i % 2))) & 0xFFFF
            y = tl.where(number >= dropped, x.to(tl.float32) * scale, 0.0)
            tl.store(y_ptr + sequence * width + at, y.to(y_ptr.dtype.element_ty), mask=at < width)


RANGE = 2**16
"""Of the numbers that decide."""
BLOCK = 256


class _Dropout(torch.autograd.Function):
    """The kernel; the gradient drops what the output dropped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seeds: torch.Tensor, salt: int, rate: float) -> torch.Tensor:
        ctx.save_for_backward(seeds)
        ctx.salt, ctx.rate = salt, rate
        return _launch(x, seeds, salt, rate)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[Any, ...]:
        (seeds,) = ctx.saved_tensors
        return _launch(dout, seeds, ctx.salt, ctx.rate), None, None, None


def _launch(x: torch.Tensor, seeds: torch.Tensor, salt: int, rate: float) -> torch.Tensor:
    x = x.contiguous()
    y, width = torch.empty_like(x), x[0].numel()
    dropped = min(round(rate * RANGE), RANGE - 1)
    grid = (triton.cdiv(width, 8 * BLOCK), len(x))
    _dropout_kernel[grid](
        x, y, seeds, salt, dropped, RANGE / (RANGE - dropped), width, BLOCK=BLOCK, num_warps=4
    )
    return y


def seeded_dropout(x: torch.Tensor, seeds: torch.Tensor, salt: int, rate: float) -> torch.Tensor:
    """Return `x` with elements set to 0 by chance, and the others scaled to the same mean.

    Args:
        x: activations, [B, ...].
        seeds: one for each of the B sequences, int64 [B], on the device of `x`.
        salt: tells apart what has the same seeds: below 2^63.
        rate: probability with which an element is dropped, below 1; kernels round it to a multiple of 2^-16.
    """
    if use_triton(x):
        return _Dropout.apply(x, seeds, salt, rate)
    kept = [
        torch.rand(part.shape, generator=_generator(seed + salt, x.device), device=x.device) >= rate
        for part, seed in zip(x, seeds.tolist(), strict=True)
    ]
    return x * torch.stack(kept) / (1 - rate)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed % 2**63)
