"""Measure one Cria of Llama 3.1 405B on this GPU: the steps' time and memory, attention alone, gradients.

    python benchmarks/step            # writes results/<gpu>.{json,md} beside this file

Weights and inputs are random; teacher forward, our steps and a materialised plain-torch step run in the same
process, interleaved, and every time is the median over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers import __version__ as transformers_version
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from trenchcoat_trainer.layers import (
    Adapter,
    CriaLayers,
    Layer,
    LayerShape,
    LayerWeights,
    Rope,
    block_step,
    layerwise_step,
    teacher_forward,
    transfer_step,
)
from trenchcoat_trainer.layers.fused import add_rms_norm
from trenchcoat_trainer.layers.llama import after_attention, attention_inputs
from trenchcoat_trainer.layers.prefetch import on_device
from trenchcoat_trainer.students import Heads, LossWeights, Student
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer

WINDOW, FEATURE_DIM, CRIAS = 64, 64, 14
PAPER_TOKENS, EPOCHS = 20_000_000, 2
GB = 1e9


def llama_405b(layers: int) -> LlamaConfig:
    """Return the shape of Llama 3.1 405B."""
    return LlamaConfig(
        hidden_size=16384, num_attention_heads=128, num_key_value_heads=8, intermediate_size=53248,
        num_hidden_layers=layers, max_position_embeddings=131072, rms_norm_eps=1e-5, vocab_size=128256,
        attn_implementation="sdpa",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip


def attention(heads: int, kv_heads: int, head_dim: int, backend: str | None = None) -> LolcatsLayer:
    """Return the attention that is measured."""
    return LolcatsLayer(heads, kv_heads, heads, head_dim, FEATURE_DIM, WINDOW, backend)


def random_maps(heads: int, head_dim: int) -> dict[str, torch.Tensor]:
    """Return untrained maps: leaves on the GPU, in fp32."""
    w_q, w_k = (torch.randn(heads, head_dim, FEATURE_DIM, device="cuda") * head_dim**-0.5 for _ in range(2))
    maps = {"w_q": w_q, "w_k": w_k, "window_factor": torch.full((heads,), -2.1972, device="cuda")}
    return {name: tensor.requires_grad_() for name, tensor in maps.items()}


def detached(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same maps, not to be trained."""
    return {name: tensor.detach() for name, tensor in maps.items()}


class Bench:
    """Random weights of one Cria on the GPU, and what the steps need beside them."""

    def __init__(self, layers: int, tokens: int, input_sets: int) -> None:
        torch.manual_seed(0)
        self.config = llama_405b(layers)
        self.shape = LayerShape.from_config(self.config)
        self.layers = [LayerWeights.empty(self.shape, torch.bfloat16, "cuda") for _ in range(layers)]
        for layer in self.layers:
            for name, part in layer.parts(self.shape).items():
                if part.ndim == 1:
                    part.fill_(1.0)
                else:
                    # scores and residual growth of the order of a trained model's
                    part.normal_(std=(1.0 if "self_attn.q" in name else 0.5) * part.shape[1] ** -0.5)
        self.rope = Rope.from_config(self.config, 32768, "cuda")
        heads, head_dim = self.shape.heads, self.shape.head_dim
        self.attention = attention(heads, self.shape.kv_heads, head_dim)
        self.maps = [random_maps(heads, head_dim) for _ in range(layers)]
        self.frozen_maps = [detached(maps) for maps in self.maps]
        kv = self.shape.kv_heads * head_dim
        self.adapters = [
            {"q_proj": self.adapter(heads * head_dim), "v_proj": self.adapter(kv)} for _ in range(layers)
        ]
        self.inputs = [self.input(1, tokens) for _ in range(input_sets)]
        self.target = self.input(1, tokens)
        self.weights = LossWeights()
        self.hugging_face, self.rotary = self.modules()

    def adapter(self, out: int, rank: int = 8) -> Adapter:
        a = torch.randn(rank, self.shape.hidden, device="cuda").mul_(self.shape.hidden**-0.5)
        b = torch.randn(out, rank, device="cuda").mul_(0.02)
        return Adapter(a.requires_grad_(), b.requires_grad_(), scale=2.0, dropout=0.05)

    def input(self, batch: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, tokens, self.shape.hidden, device="cuda", dtype=torch.bfloat16)

    def modules(self) -> tuple[list[LlamaDecoderLayer], LlamaRotaryEmbedding]:
        """Return Hugging Face's own decoder layers over views of the same weights."""
        modules = []
        for i, layer in enumerate(self.layers):
            with torch.device("meta"):
                module = LlamaDecoderLayer(self.config, i)
            layer.attach(module, self.shape)
            modules.append(module.eval())
        return modules, LlamaRotaryEmbedding(config=self.config).to("cuda")

    @torch.no_grad()
    def teacher(self, x: torch.Tensor) -> torch.Tensor:
        """Run Hugging Face's layers: plain products and SDPA."""
        positions = self.rotary(x, torch.arange(x.shape[1], device="cuda")[None])
        for module in self.hugging_face:
            x = module(x, position_embeddings=positions)
        return x

    def student(self, all_maps: list[dict[str, torch.Tensor]], adapters: list[dict]) -> CriaLayers:
        """Return the layers with the student's attention."""
        rows = zip(self.layers, all_maps, adapters, strict=True)
        layers = [Layer(weights, Student(self.attention, maps), own) for weights, maps, own in rows]
        return CriaLayers(self.shape, layers)

    @torch.no_grad()
    def fused_teacher(self, x: torch.Tensor) -> torch.Tensor:
        return teacher_forward(self.layers, x, self.rope.first(x.shape[1]), self.shape)

    def transfer(self, x: torch.Tensor) -> object:
        rope = self.rope.first(x.shape[1])
        return transfer_step(self.student(self.maps, [{}] * len(self.layers)), x, rope, self.weights)

    def layerwise(self, x: torch.Tensor) -> object:
        rope = self.rope.first(x.shape[1])
        return layerwise_step(self.student(self.frozen_maps, self.adapters), x, rope, self.weights)

    def block(self, x: torch.Tensor, recompute: bool = False) -> object:
        rope = self.rope.first(x.shape[1])
        student, target = self.student(self.frozen_maps, self.adapters), self.target[:, : x.shape[1]]
        return block_step(student, x, target, rope, recompute=recompute)

    @torch.no_grad()
    def materialised(self, x: torch.Tensor) -> None:
        """Attention transfer with every map materialised in plain torch, otherwise as `transfer`."""
        delta, rope = None, self.rope.first(x.shape[1])
        for i, (layer, maps) in enumerate(zip(self.layers, self.maps, strict=True)):
            x, normed = add_rms_norm(x, delta, layer.input_norm, self.shape.eps)
            q, k, v = attention_inputs(layer, normed, rope, self.shape)
            with torch.enable_grad():
                loss, y = materialised_loss(q, k, v, *maps.values())
                loss.backward()
            if i + 1 < len(self.layers):
                x, delta = after_attention(layer, x, y, self.shape)

    @torch.no_grad()
    def products(self, x: torch.Tensor) -> None:
        """Run the matrix products of `transfer` and nothing else."""
        rows = x.flatten(0, 1)
        wide = self.wide[: rows.shape[0]]
        for i, layer in enumerate(self.layers):
            F.linear(rows, layer.qkv)
            if i + 1 < len(self.layers):
                F.linear(rows, layer.out)
                F.linear(rows, layer.gate_up)
                F.linear(wide, layer.down)

    def product_flops(self, tokens: int, skip_last: bool) -> float:
        total = len(self.layers) * self.shape.products_per_token
        return 2.0 * tokens * (total - (self.shape.skipped_products_per_token if skip_last else 0))

    def clear(self) -> None:
        for m in self.maps:
            for t in m.values():
                t.grad = None
        for adapters in self.adapters:
            for adapter in adapters.values():
                adapter.a.grad = adapter.b.grad = None


def materialised_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    factor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both losses with bf16 products and fp32 maps of n x n, as one would write them first."""
    heads, tokens = q.shape[1:3]
    k, v = k.repeat_interleave(heads // k.shape[1], 1), v.repeat_interleave(heads // v.shape[1], 1)
    row = torch.arange(tokens, device=q.device)
    causal = row[None, :] <= row[:, None]
    window = causal & (row[None, :] // WINDOW >= row[:, None] // WINDOW - 1)
    s = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    teacher = s.masked_fill(~causal, -math.inf).softmax(-1)
    y_teacher = teacher.to(v.dtype) @ v

    def phi(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        z = (x @ w.to(x.dtype)).float()
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).clamp_min(1e-12)

    u = (phi(q, w_q).to(q.dtype) @ phi(k, w_k).to(q.dtype).transpose(-1, -2)).float()
    m = s.masked_fill(~window, -math.inf).amax(-1, keepdim=True)
    exact = factor.sigmoid()[:, None, None] * (s - m).masked_fill(~window, -math.inf).exp()
    weights = exact + u.masked_fill(window | ~causal, 0.0)
    student = weights / weights.sum(-1, keepdim=True)
    y = student.to(v.dtype) @ v
    mse = (y.float() - y_teacher.float()).square().mean()
    xent = -(teacher * student.clamp_min(1e-20).log()).sum(-1).mean()
    return 1000.0 * mse + xent, y_teacher


def milliseconds(function, x: torch.Tensor) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function(x)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def interleaved(functions: dict, inputs: list[torch.Tensor], rounds: int, clear) -> dict[str, float]:
    """Return the median time of each function, taking turns over the input sets."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for r in range(rounds + 2):
        for name, function in functions.items():
            elapsed = milliseconds(function, inputs[r % len(inputs)])
            clear()
            if r >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_gb(function, x: torch.Tensor, clear) -> float:
    """Return the peak of allocated GPU memory, weights included, in 10^9 bytes."""
    clear()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GB


def matrix_rate() -> float:
    """Return the FLOP/s of one 8192^3 bf16 product of random matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [milliseconds(lambda x: x @ b, a) for _ in range(20)]
    return 2 * 8192**3 / (statistics.median(times[5:]) * 1e-3)


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


def measure(args: argparse.Namespace) -> dict:
    """Run everything and return the results by key."""
    results: dict = {
        "hardware": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": __import__("triton").__version__,
            "transformers": transformers_version,
            "cuda": torch.version.cuda,
        },
        "layers": args.layers,
        "tokens": args.tokens,
    }
    results["gradient_error_bf16_by_argument"] = gradient_error(torch.bfloat16)
    results["gradient_error_fp32_by_argument"] = gradient_error(torch.float32)
    for name in ("bf16", "fp32"):
        results[f"gradient_error_{name}"] = max(results[f"gradient_error_{name}_by_argument"].values())
    log(results)
    results["attention_alone"] = [attention_alone(tokens) for tokens in (1024, 4096, 16384)]
    gc.collect()
    torch.cuda.empty_cache()
    for line in results["attention_alone"]:
        log(line)

    bench = Bench(args.layers, args.tokens, input_sets=3)
    bench.wide = torch.randn(args.tokens, bench.shape.mlp, device="cuda", dtype=torch.bfloat16)
    functions = {
        "teacher_forward_ms": bench.teacher,
        "teacher_forward_fused_ms": bench.fused_teacher,
        "transfer_step_ms": bench.transfer,
        "materialised_step_ms": bench.materialised,
        "lora_layerwise_step_ms": bench.layerwise,
        "lora_block_step_ms": bench.block,
        "products_alone_ms": bench.products,
    }
    for function in functions.values():
        function(bench.inputs[0])
        bench.clear()
        torch.cuda.empty_cache()
    log("warm")
    results.update(interleaved(functions, bench.inputs, args.rounds, bench.clear))
    log({name: results[name] for name in functions})
    results["lora_step_ms"] = {
        "layerwise": results["lora_layerwise_step_ms"],
        "block": results["lora_block_step_ms"],
    }
    del bench.wide
    results["matrix_tflops_8192"] = matrix_rate() / 1e12
    step = results["transfer_step_ms"]
    flops = bench.product_flops(args.tokens, skip_last=True)
    full = bench.product_flops(args.tokens, skip_last=False)
    results["matrix_bound_ms"] = flops / results["matrix_tflops_8192"] / 1e9
    results["fraction_of_bound"] = results["matrix_bound_ms"] / step
    results["transfer_over_teacher"] = step / results["teacher_forward_ms"]
    results["transfer_over_fused_teacher"] = step / results["teacher_forward_fused_ms"]
    results["materialised_over_transfer"] = results["materialised_step_ms"] / step
    results["layerwise_over_teacher"] = results["lora_layerwise_step_ms"] / results["teacher_forward_ms"]
    results["block_over_teacher"] = results["lora_block_step_ms"] / results["teacher_forward_ms"]
    results["product_tflops"] = {
        "teacher_forward": full / results["teacher_forward_ms"] / 1e9,
        "transfer_step": flops / step / 1e9,
        "lora_layerwise_step": flops / results["lora_layerwise_step_ms"] / 1e9,
        "lora_block_step": 2 * full / results["lora_block_step_ms"] / 1e9,
    }
    results["transfer_step_streaming_ms"] = streaming(bench)
    results["transfer_step_ms_per_1024_by_sequences"] = several_sequences(bench)
    log((results["transfer_step_streaming_ms"], results["transfer_step_ms_per_1024_by_sequences"]))

    results["peak_gb_weights"] = sum(p.numel() for w in bench.layers for p in vars(w).values()) * 2 / GB
    first = bench.inputs[0]
    results["peak_gb_lora_layerwise_1k"] = peak_gb(bench.layerwise, first, bench.clear)
    results["peak_gb_lora_block_1k"] = peak_gb(bench.block, first, bench.clear)
    results["peak_gb_materialised_1k"] = peak_gb(bench.materialised, first, bench.clear)
    bench.inputs, bench.target = [], bench.target[:, :0]
    curve, reserved, times, teacher = {}, {}, {}, {}
    for tokens in (1024, 2048, 4096, 8192, 16384, 32768):
        x = bench.input(1, tokens)
        try:
            curve[tokens] = peak_gb(bench.transfer, x, bench.clear)
            reserved[tokens] = torch.cuda.max_memory_reserved() / GB
            times[tokens] = milliseconds(bench.transfer, x)
        except torch.cuda.OutOfMemoryError:
            curve[tokens] = times[tokens] = None
        if tokens <= 16384:  # beyond, the teacher's modules need more memory than there is beside the weights
            torch.cuda.empty_cache()
            bench.teacher(x)
            teacher[tokens] = milliseconds(bench.teacher, x)
        del x
        log((tokens, curve[tokens], times[tokens], teacher.get(tokens)))
    results["peak_gb_by_tokens"] = curve
    results["peak_reserved_gb_by_tokens"] = reserved
    results["teacher_forward_ms_by_tokens"] = teacher
    results["transfer_step_ms_by_tokens"] = times
    results["peak_gb_1k"], results["peak_gb_16k"] = curve[1024], curve[16384]
    hours = step / 1024 * PAPER_TOKENS * EPOCHS * CRIAS / 3.6e6 * (1024 / args.tokens)
    results["gpu_hours_405b_20m_2_epochs"] = hours
    return results


def several_sequences(bench: Bench) -> dict[str, float]:
    """Return the transfer step's time per 1024 tokens for micro-batches of several sequences."""
    times = {}
    for batch in (1, 2, 4, 8):
        x = bench.input(batch, 1024)
        values = []
        for r in range(5):
            values.append(milliseconds(bench.transfer, x) / batch)
            bench.clear()
            if r == 1:
                values.clear()
        times[str(batch)] = statistics.median(values)
    return times


def streaming(bench: Bench, steps: int = 14) -> float:
    """Return the time of a transfer step whose inputs come from pinned host memory, copied meanwhile."""
    host = [x.cpu().pin_memory() for x in bench.inputs]
    events = []
    for x in on_device((host[i % len(host)] for i in range(steps)), "cuda"):
        bench.transfer(x)
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
    events[-1].synchronize()
    bench.clear()
    return events[3].elapsed_time(events[-1]) / (steps - 4)


def log(value: object) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f} s] {value}", file=sys.stderr, flush=True)


def table(r: dict) -> str:
    """Return the results for people."""

    def row(name: str, ms: float, note: str) -> str:
        return f"| {name} | {ms:.1f} | {ms / r['teacher_forward_ms']:.2f} | {note} |"

    peak = {name: f"{r[f'peak_gb_{name}']:.1f} GB" for name in ("1k", "lora_layerwise_1k", "lora_block_1k",
                                                               "materialised_1k")}  # fmt: skip
    rate = {name: f"{value:.0f} TFLOP/s" for name, value in r["product_tflops"].items()}
    lines = [
        f"One Cria of Llama 3.1 405B ({r['layers']} layers), 1 x {r['tokens']} tokens, {r['hardware']}",
        "",
        "| step | ms | of the teacher's forward | |",
        "|---|---|---|---|",
        row("teacher forward (Hugging Face layers, SDPA)", r["teacher_forward_ms"], rate["teacher_forward"]),
        row("teacher forward, fused", r["teacher_forward_fused_ms"], ""),
        row("matrix products of a transfer step alone", r["products_alone_ms"], ""),
        row("bound: those products at the rate of 8192^3", r["matrix_bound_ms"],
            f"{r['matrix_tflops_8192']:.0f} TFLOP/s"),
        row("attention transfer", r["transfer_step_ms"], f"{rate['transfer_step']}, peak {peak['1k']}"),
        row("the same, inputs streamed from the host", r["transfer_step_streaming_ms"], ""),
        row("the same per sequence, 4 at a time", r["transfer_step_ms_per_1024_by_sequences"]["4"], ""),
        row("attention transfer, materialised", r["materialised_step_ms"], f"peak {peak['materialised_1k']}"),
        row("LoRA by Cria, layerwise", r["lora_layerwise_step_ms"],
            f"{rate['lora_layerwise_step']}, peak {peak['lora_layerwise_1k']}"),
        row("LoRA by Cria, block", r["lora_block_step_ms"],
            f"{rate['lora_block_step']}, peak {peak['lora_block_1k']}"),
        "",
        "| tokens | transfer step, ms | teacher forward, ms | peak GB |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for tokens, peak_of in r["peak_gb_by_tokens"].items():
        ms = r["transfer_step_ms_by_tokens"][tokens]
        teacher = r["teacher_forward_ms_by_tokens"].get(tokens)
        values = ["out of memory" if x is None else f"{x:.1f}" for x in (ms, peak_of)]
        lines.append(
            f"| {tokens} | {values[0]} | {'' if teacher is None else f'{teacher:.1f}'} | {values[1]} |"
        )
    names = ("sdpa", "transfer", "layerwise", "student")
    lines += ["", "Attention alone, TFLOP/s forward / backward (ms):", ""]
    lines += ["| tokens | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for a in r["attention_alone"]:
        cells = [
            f"{a[f'{n}_forward_tflops']:.0f} / {a[f'{n}_backward_tflops']:.0f} "
            f"({a[f'{n}_forward_ms']:.2f} / {a[f'{n}_backward_ms']:.2f})"
            for n in names
        ]
        lines.append(f"| {a['tokens']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Gradient error against naive in float64: {r['gradient_error_bf16']:.1e} with bf16 operands, "
        f"{r['gradient_error_fp32']:.1e} with fp32.",
        f"405B, attention transfer, 20M tokens x 2 epochs: {r['gpu_hours_405b_20m_2_epochs']:.1f} GPU-hours.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU with about 80 GB")
    results = measure(args)
    gpu = results["hardware"].lower().replace("nvidia ", "").split()[0]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{gpu}.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.out / f"{gpu}.md").write_text(table(results))
    print(table(results))


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
