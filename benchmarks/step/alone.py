"""Attention by itself: its speed against SDPA, its gradients against the naive form in float64."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F
from shapes import WINDOW, attention, detached, random_maps
from trenchcoat_trainer.students import Heads, LossWeights


def attention_alone(tokens: int, rounds: int = 15) -> dict[str, float]:
    """Time attention by itself at 405B's shapes against SDPA; FLOPs counted once per product of a pair."""
    heads, kv_heads, d = 128, 8, 128

    def new(h: int) -> torch.Tensor:
        return torch.randn(1, tokens, h, d, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    q, k, v = new(heads), new(kv_heads), new(kv_heads)
    layer, maps, weights = attention(heads, kv_heads, d), random_maps(heads, d), LossWeights()
    teacher, frozen = Heads(q, k, v), detached(maps)
    g = torch.randn_like(q)
    student = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    plain = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    calls = {
        "sdpa": lambda: F.scaled_dot_product_attention(*plain, is_causal=True, enable_gqa=True),
        "transfer": lambda: layer.transfer_loss(teacher, maps, weights).loss,
        "layerwise": lambda: layer.distill_loss(Heads(*student), teacher, frozen, weights).loss,
        "student": lambda: layer.attend(Heads(*student), frozen),
    }
    times: dict[str, list[float]] = {}
    for r in range(rounds + 3):
        for name, call in calls.items():
            events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            torch.cuda._sleep(10_000_000)  # the launches of both parts queue up behind this
            events[0].record()
            out = call()
            events[1].record()
            out.backward(g if out.ndim else None)
            events[2].record()
            events[2].synchronize()
            if r >= 3:
                times.setdefault(f"{name}_forward_ms", []).append(events[0].elapsed_time(events[1]))
                times.setdefault(f"{name}_backward_ms", []).append(events[1].elapsed_time(events[2]))
    result = {name: statistics.median(values) for name, values in times.items()}
    pairs = tokens * (tokens + 1) / 2
    block = torch.arange(tokens) // WINDOW
    below = float(((block - 1).clamp_min(0) * WINDOW).sum())
    product = 2.0 * d * heads
    flops = {
        "sdpa_forward": 2 * pairs, "sdpa_backward": 5 * pairs,
        "transfer_forward": 2 * pairs + 2 * below, "transfer_backward": 5 * below,
        "layerwise_forward": 2 * pairs + 2 * (pairs - below) + 2 * below,
        "layerwise_backward": 6 * below + 6 * (pairs - below),
        "student_forward": 2 * pairs, "student_backward": 5 * pairs,
    }  # fmt: skip
    for name, count in flops.items():
        result[f"{name}_tflops"] = count * product / result[f"{name}_ms"] / 1e9
    return {"tokens": tokens, **result}


def gradient_error(dtype: torch.dtype) -> dict[str, float]:
    """Return each gradient's worst relative error against `naive` in float64, padding poisoned by NaN."""
    worst: dict[str, float] = {}
    for tokens in (65, 127, 333, 1031):
        torch.manual_seed(tokens)
        heads, d = 4, 128

        def poisoned(h: int, tokens: int = tokens, d: int = d) -> torch.Tensor:
            storage = torch.full((1, tokens + 50, h, d), math.nan, device="cuda", dtype=dtype)
            storage[:, :tokens].normal_()
            return storage.transpose(1, 2)[:, :, :tokens]

        q, k, v = poisoned(heads), poisoned(2), poisoned(2)
        maps = detached(random_maps(heads, d))
        maps["window_factor"] = torch.randn(heads, device="cuda") - 2.0
        mine = {name: m.clone().requires_grad_() for name, m in maps.items()}
        truth = {name: m.double().requires_grad_() for name, m in maps.items()}
        attention(heads, 2, d, "triton").transfer_loss(Heads(q, k, v), mine, LossWeights()).loss.backward()
        exact = Heads(*(t.double() for t in (q, k, v)))
        attention(heads, 2, d, "naive").transfer_loss(exact, truth, LossWeights()).loss.backward()
        for name, x, y in ((name, mine[name], truth[name]) for name in maps):
            if y.grad.norm() == 0 or tokens <= 2 * WINDOW:
                assert float(x.grad.norm()) < 1e-6
                continue
            error = float((x.grad.double() - y.grad).norm() / y.grad.norm())
            worst[name] = max(worst.get(name, 0.0), error if math.isfinite(error) else math.inf)
    return worst
