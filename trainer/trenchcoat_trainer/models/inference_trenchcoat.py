"""Norm, MLP and RoPE of a Llama in fewer passes over memory, where no gradient is asked for.

An exported checkpoint carries this file, and beside it ``fused_trenchcoat.py`` for GPUs with Triton; it
imports torch and transformers alone. A prompt's forward is bound by launches where it is short, and norms and
RoPE by memory where it is long. Results are Llama's but for rounding: what it rounds on the way stays in fp32
here.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

MOST_ELEMENTS = 2**32
"""The norm's kernel finds its rows by 32 bits."""
FEWEST_ELEMENTS = 2**24
"""Of an MLP's inner tensor: below it one kernel for both operations gains less than it takes to launch it."""


def is_inference(x):
    """Say whether `x` is in half precision on a GPU, without gradients; elsewhere Llama's own code computes.

    So it does while compiling, which fuses by itself.
    """
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


@functools.cache
def kernels(device):
    """Return the Triton kernels, or None where `device` or what is installed does not run them."""
    if device.type != "cuda" or torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    from . import fused_trenchcoat  # imports Triton: only where it is wanted

    return fused_trenchcoat


class TrenchcoatRMSNorm(LlamaRMSNorm):
    """Llama's norm, for inference by one operation of torch's."""

    def forward(self, hidden_states):
        """Norm the last dimension of [..., hidden]."""
        x, weight = hidden_states, self.weight
        if not is_inference(x) or weight.dtype != x.dtype or x.numel() > MOST_ELEMENTS:
            return super().forward(x)
        return F.rms_norm(x, weight.shape, weight, self.variance_epsilon)


class TrenchcoatMLP(LlamaMLP):
    """Llama's MLP, for inference with two tensors of its inner size at once, not three, and then with one."""

    def forward(self, x):
        """Return [..., hidden] of the same."""
        if not is_inference(x):
            return super().forward(x)
        return self.down_proj(self._inner(x))

    def _inner(self, x):
        gate, act = self.gate_proj(x), self.config.hidden_act
        fused = kernels(x.device) if gate.numel() >= FEWEST_ELEMENTS and act in ("silu", "swish") else None
        if fused is not None:
            return fused.swiglu(gate, self.up_proj(x))
        gate = self.act_fn(gate)
        return gate.mul_(self.up_proj(x))


def apply_rope(q, k, cos, sin):
    """Rotate q [B, H, T, D] and k [B, K, T, D] by the angles of cos and sin, [B, T, D]; returns both."""
    if not is_inference(q) or cos.dtype != q.dtype:
        return apply_rotary_pos_emb(q, k, cos, sin)
    fused = kernels(q.device)
    if fused is not None and all(x.stride(-1) == 1 for x in (q, k, cos, sin)):
        return fused.rotate(q, k, cos, sin)
    return _rotated(q, cos[:, None], sin[:, None]), _rotated(k, cos[:, None], sin[:, None])


def _rotated(x, cos, sin):
    y = x * cos
    x_low, x_high = x.chunk(2, -1)
    y_low, y_high = y.chunk(2, -1)
    sin_low, sin_high = sin.chunk(2, -1)
    y_low.addcmul_(x_high, sin_low, value=-1)
    y_high.addcmul_(x_low, sin_high)
    return y
