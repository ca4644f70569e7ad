"""Which of the three ways of computing hybrid attention runs.

``naive`` is the truth, ``tiled`` needs memory linear in the number of tokens on any device, ``kernels`` runs
at the speed of a GPU's matrix units. Each has ``attend(x, keep_parts)``, the student's output, and
``distill_loss(x, teacher, drop_window)``: (mse, xent, the teacher's output).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType

import torch

from trenchcoat_trainer.students.lolcats import naive, tiled

logger = logging.getLogger(__name__)

BACKENDS = ("naive", "tiled", "triton")


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("attention falls back to the tiled backend: %s", reason)


def choose_backend(backend: str | None, q: torch.Tensor) -> ModuleType:
    """Return the backend to use: `backend`, or by device; tiled with one warning where Triton cannot run.

    Raises:
        ValueError: there is no such backend.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend is None:
        backend = "triton" if q.is_cuda else "tiled"
    if backend == "naive":
        return naive
    if backend == "triton":
        reason = _triton_unusable(q)
        if reason is None:
            return _kernels()
        _warn_once(reason)
    return tiled


def _triton_unusable(q: torch.Tensor) -> str | None:
    """Say why the Triton kernels cannot take `q`, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    kernels = _kernels()
    if not kernels.INTERPRETED:
        if not torch.cuda.is_available() or not q.is_cuda:
            return "there is no GPU"
        if torch.cuda.get_device_capability(q.device) < (8, 0):
            return "the GPU has no bf16 matrix units"
    return kernels.unsupported(q)


def _kernels() -> ModuleType:
    from trenchcoat_trainer.students.lolcats import kernels  # imports triton: only where it is wanted

    return kernels
