"""The losses of attention transfer and the student's attention, whichever way they are computed.

Sources: LoLCATs (arXiv 2410.10254) for the hybrid attention and the two losses, Hedgehog (arXiv 2402.04347)
for the feature maps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType
from typing import NamedTuple

import torch

from trenchcoat_trainer.attention import hybrid, naive, tiled

logger = logging.getLogger(__name__)

BACKENDS = ("naive", "tiled", "triton")


class TransferLoss(NamedTuple):
    """What attention transfer needs from one layer.

    Attributes:
        loss: mse_weight * mse + xent_weight * xent, a scalar.
        mse: mean squared difference of the student's and the teacher's attention outputs, over all elements.
        xent: cross-entropy -sum_k a_teacher log a_student in nats, mean over rows (batch, head, token).
        output: the teacher's softmax attention output before o_proj, [B, H, T, D]; carries no gradient.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    xent: torch.Tensor
    output: torch.Tensor


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("attention falls back to the tiled backend: %s", reason)


def choose_backend(backend: str | None, q: torch.Tensor) -> str:
    """Return the backend to use: `backend`, or by device; tiled with one warning where Triton cannot run.

    Raises:
        ValueError: there is no such backend.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend is None:
        backend = "triton" if q.is_cuda else "tiled"
    if backend == "triton":
        reason = _triton_unusable(q)
        if reason is not None:
            _warn_once(reason)
            return "tiled"
    return backend


def _triton_unusable(q: torch.Tensor) -> str | None:
    """Say why the Triton kernels cannot take `q`, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from trenchcoat_trainer.attention import kernels  # imports triton: only where it is wanted

    if not kernels.INTERPRETED:
        if not torch.cuda.is_available() or not q.is_cuda:
            return "there is no GPU"
        if torch.cuda.get_device_capability(q.device) < (8, 0):
            return "the GPU has no bf16 matrix units"
    return kernels.unsupported(q)


def transfer_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    *,
    window_size: int,
    mse_weight: float = 1000.0,
    xent_weight: float = 1.0,
    drop_window: bool = False,
    backend: str | None = None,
) -> TransferLoss:
    """Compare hybrid attention with the softmax attention that it replaces, on the teacher's own q, k, v.

    Gradients flow to `w_q`, `w_k` and `window_factor`; q, k and v are the frozen teacher's and get none.

    Args:
        q: queries after RoPE, [batch, heads, tokens, head_dim].
        k: keys after RoPE, [batch, heads or kv_heads, tokens, head_dim]: grouped queries need no repeating.
        v: values, shaped like `k`.
        w_q: query feature maps, [heads, head_dim, feature_dim].
        w_k: key feature maps, like `w_q`, or [kv_heads, head_dim, feature_dim] when shared by a group.
        window_factor: weight of the window before the sigmoid, [heads].
        window_size: tokens per block of the terraced window.
        mse_weight: weight of the outputs' squared error.
        xent_weight: weight of the maps' cross-entropy.
        drop_window: compare linear attention alone, over every key up to the query's own, in place of the
            hybrid: window dropout. `window_factor` then has no part in the losses and gets no gradient.
        backend: "naive" (every map materialised, in the dtype given), "tiled" (torch, linear memory, any
            device), "triton" (GPU), or None to choose by device.

    Returns:
        The losses, and the teacher's attention output to pass on.

    Raises:
        ValueError: shapes do not belong together or the backend is unknown.
    """
    q, k, v = q.detach(), k.detach(), v.detach()
    hybrid.check_shapes(q, k, v, w_q, w_k, window_factor, window_size)
    module = _backend_module(choose_backend(backend, q))
    mse, xent, output = module.distill_loss(
        q, k, v, q, k, v, w_q, w_k, window_factor, window_size, drop_window
    )
    return TransferLoss(mse_weight * mse + xent_weight * xent, mse, xent, output)


def distill_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_teacher: torch.Tensor,
    k_teacher: torch.Tensor,
    v_teacher: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    *,
    window_size: int,
    mse_weight: float = 1000.0,
    xent_weight: float = 1.0,
    backend: str | None = None,
) -> TransferLoss:
    """Compare the student's hybrid attention on its own q, k, v with the teacher's softmax attention.

    This is `transfer_loss` for a student whose projections carry adapters (LoRA by Cria, objective
    `layerwise`).  Gradients flow to q, k, v, `w_q`, `w_k` and `window_factor`, never to the teacher's side.
    Shapes, weights, backends and errors are those of `transfer_loss`.
    """
    hybrid.check_shapes(q, k, v, w_q, w_k, window_factor, window_size)
    if q_teacher.shape != q.shape or k_teacher.shape != k.shape or v_teacher.shape != v.shape:
        raise ValueError("the teacher's q, k and v must have the shapes of the student's")
    module = _backend_module(choose_backend(backend, q))
    mse, xent, output = module.distill_loss(
        q, k, v, q_teacher, k_teacher, v_teacher, w_q, w_k, window_factor, window_size
    )
    return TransferLoss(mse_weight * mse + xent_weight * xent, mse, xent, output)


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    *,
    window_size: int,
    keep_parts: str = "both",
    backend: str | None = None,
) -> torch.Tensor:
    """Return the student's attention output before o_proj, [batch, heads, tokens, head_dim].

    Every floating-point argument gets its gradient, in memory linear in the number of tokens ("naive"
    excepted).

    Args:
        q: queries after RoPE, [batch, heads, tokens, head_dim].
        k: keys after RoPE, [batch, heads or kv_heads, tokens, head_dim].
        v: values, shaped like `k`.
        w_q: query feature maps, [heads, head_dim, feature_dim].
        w_k: key feature maps, like `w_q`, or per key/value head.
        window_factor: weight of the window before the sigmoid, [heads].
        window_size: tokens per block of the terraced window.
        keep_parts: "both", or "window" / "linear" to drop the other part's weights before normalising; a row
            whose weights are all dropped gives zeros.
        backend: as in `transfer_loss`.

    Raises:
        ValueError: shapes do not belong together, or `backend` or `keep_parts` is unknown.
    """
    hybrid.check_shapes(q, k, v, w_q, w_k, window_factor, window_size)
    if keep_parts not in ("both", "window", "linear"):
        raise ValueError(f"keep_parts must be both, window or linear, not {keep_parts!r}")
    chosen = choose_backend(backend, q)
    if chosen == "naive":
        return naive.hybrid_attention(q, k, v, w_q, w_k, window_factor, window_size, keep_parts)
    if chosen == "triton" and keep_parts == "both":
        from trenchcoat_trainer.attention import kernels

        return kernels.hybrid_attention(q, k, v, w_q, w_k, window_factor, window_size)
    return hybrid.hybrid_attention(
        q, k, v, w_q, w_k, window_factor, window_size=window_size, keep_parts=keep_parts
    )


def _backend_module(name: str) -> ModuleType:
    if name == "naive":
        return naive
    if name == "tiled":
        return tiled
    from trenchcoat_trainer.attention import kernels

    return kernels
