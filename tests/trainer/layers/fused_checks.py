"""Checks of the fused operations against plain torch that run on a GPU or under Triton's interpreter."""

import torch
from trenchcoat_trainer.layers import float8, fused
from trenchcoat_trainer.layers.dropout import seeded_dropout


def relative(x, truth):
    x, truth = x.double().cpu(), truth.double().cpu()
    return float((x - truth).norm() / truth.norm()) if torch.isfinite(x).all() else float("inf")


def compare(function, tensors, wanted):
    """Return the errors of outputs and gradients in the tensors' dtype against plain torch in float64."""
    torch.manual_seed(1)
    results = []
    for dtype in (None, torch.float64):
        leaves = [
            t.detach().to(dtype or t.dtype).clone().requires_grad_(name in wanted)
            for name, t in tensors.items()
        ]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(2)
        sum((y * torch.randn(y.shape).to(y.device, y.dtype)).double().sum() for y in outputs).backward()
        gradients = {f"d{n}": x.grad for n, x in zip(tensors, leaves, strict=True) if n in wanted}
        results.append({**{f"y{i}": y.detach() for i, y in enumerate(outputs)}, **gradients})
    mine, truth = results
    return {name: relative(mine[name], truth[name]) for name in truth}


def norm_errors(device="cpu", dtype=torch.float32, width=96):
    x, delta, w = torch.randn(2, 5, width), torch.randn(2, 5, width), 1 + 0.1 * torch.randn(width)
    tensors = {"x": x.to(device, dtype), "delta": delta.to(device, dtype), "w": w.to(device, dtype)}
    return compare(lambda x, d, w: fused.add_rms_norm(x, d, w, 1e-5), tensors, {"x", "delta"})


def first_norm_errors(device="cpu", dtype=torch.float32, width=96):
    x, w = torch.randn(2, 5, width), 1 + 0.1 * torch.randn(width)
    tensors = {"x": x.to(device, dtype), "w": w.to(device, dtype)}
    return compare(lambda x, w: fused.add_rms_norm(x, None, w, 1e-5), tensors, {"x"})


def rope_errors(device="cpu", dtype=torch.float32, heads=6, kv_heads=2, head_dim=16, tokens=7, by_row=False):
    angles = torch.randn(*([2] if by_row else []), tokens, head_dim // 2).to(device)
    qkv = torch.randn(2, tokens, (heads + 2 * kv_heads) * head_dim).to(device, dtype)
    return compare(
        lambda x: fused.split_and_rotate(x, angles.cos(), angles.sin(), heads, kv_heads),
        {"qkv": qkv},
        {"qkv"},
    )


def rope_parts_errors(device="cpu", dtype=torch.float32):
    """Queries and values alone: what is not wanted has no gradient."""
    angles = torch.randn(7, 8).to(device)

    def parts(x):
        q, k, v = fused.split_and_rotate(x, angles.cos(), angles.sin(), 6, 2, (True, False, True))
        assert k is None
        return q, v

    return compare(parts, {"qkv": torch.randn(2, 7, 160).to(device, dtype)}, {"qkv"})


def swiglu_errors(device="cpu", dtype=torch.float32, width=70):
    return compare(fused.swiglu, {"gate_up": torch.randn(3, 4, 2 * width).to(device, dtype)}, {"gate_up"})


def float8_errors(device="cpu", dtype=torch.float32, width=96, long=5000):
    """Of what makes inputs of FP8 products, against plain torch on the CPU; the second row is of zeros."""
    torch.manual_seed(1)
    x, delta, w = torch.randn(2, 5, width), torch.randn(2, 5, width), 1 + 0.1 * torch.randn(width)
    x[0, 1] = delta[0, 1] = 0
    gate_up = torch.randn(3, 2 * long)
    calls = {
        "norm": (float8.add_rms_norm_rows, x, delta, w, 1e-5),
        "first norm": (float8.add_rms_norm_rows, x, None, w, 1e-5),
        "swiglu": (float8.swiglu_rows, gate_up),
        "rows": (float8.quantise_rows, x),
        "long rows": (float8.quantise_rows, gate_up),
    }
    errors = {}
    for name, (function, *arguments) in calls.items():
        cast = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in arguments]
        moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in cast]
        tested, use_triton = function(*moved), float8.use_triton
        float8.use_triton = fused.use_triton = lambda x: False
        try:
            truth = function(*cast)
        finally:
            float8.use_triton = fused.use_triton = use_triton
        if isinstance(truth, tuple):
            errors[f"{name}, sum"] = relative(tested[0], truth[0])
            tested, truth = tested[1], truth[1]
        errors[f"{name}, scales"] = relative(tested.scales, truth.scales)
        errors[name] = relative(tested.dequantised(), truth.dequantised())
    return errors


def rope_by_row_errors():
    """Sequences that start at positions of their own."""
    return rope_errors(by_row=True)


def dropout_errors(device="cpu"):
    """A sequence by itself drops what it drops beside others, and its gradient the same."""
    x = torch.ones(3, 5, 450, device=device, requires_grad=True)
    seeds = torch.tensor([5, 6, 5], device=device)
    y = seeded_dropout(x, seeds, 2**62 + 11, 0.25)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    alone = seeded_dropout(x[1:2], seeds[1:2], 2**62 + 11, 0.25)
    return {
        "gradient": relative(gradient, y),
        "alone": relative(alone[0], y[1]),
        "same seed": relative(y[2], y[0]),
        "other seed": float(torch.equal(y[0], y[1])),
        "other adapter": float(torch.equal(y, seeded_dropout(x, seeds, 2**62 + 12, 0.25))),
        "share": float(abs((y == 0).float().mean() - 0.25) > 0.03),
        "scale": relative(y.max(), torch.tensor(4 / 3)),
    }
