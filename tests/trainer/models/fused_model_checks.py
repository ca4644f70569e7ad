"""Checks of what an export carries for norm, MLP and RoPE, on a GPU or under Triton's interpreter."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from trenchcoat_trainer.models import fused_trenchcoat


def relative(x, truth):
    """The norm of the difference over the norm of the truth; infinite where `x` is not finite."""
    x, truth = x.double(), truth.double()
    return float((x - truth).norm() / truth.norm()) if torch.isfinite(x).all() else float("inf")


def rope_errors(tokens, head_dim, rows=1, device="cpu", dtype=torch.float32):
    """Errors of rotated queries and keys; `rows`: 1 where sequences share their angles, else 2."""
    draws = torch.Generator().manual_seed(tokens)
    q, k = (
        torch.randn(2, tokens, heads, head_dim, generator=draws).to(device, dtype).transpose(1, 2)
        for heads in (3, 1)
    )
    angles = torch.randn(rows, tokens, head_dim // 2, generator=draws).repeat(1, 1, 2)
    cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    truths = apply_rotary_pos_emb(*(x.double() for x in (q, k, cos, sin)))
    found = fused_trenchcoat.rotate(q, k, cos, sin)
    assert [x.transpose(1, 2).is_contiguous() for x in found] == [True, True]
    return {name: relative(*pair) for name, *pair in zip("qk", found, truths, strict=True)}


def swiglu_errors(tokens, width, device="cpu", dtype=torch.float32):
    """Error of the MLP's inner tensor, which is written over the gate."""
    draws = torch.Generator().manual_seed(width)
    gate, up = (torch.randn(tokens, width, generator=draws).to(device, dtype) * 3 for _ in range(2))
    truth = torch.nn.functional.silu(gate.double()) * up.double()
    found = fused_trenchcoat.swiglu(gate, up)
    assert found is gate
    return {"y": relative(found, truth)}
