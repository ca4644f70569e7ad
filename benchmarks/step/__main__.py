"""Measure one Cria of Llama 3.1 405B on this GPU: the steps' time and memory, attention alone, gradients.

    python benchmarks/step            # writes results/<gpu>.{json,md} beside this file

Weights and inputs are random; teacher forward, our steps and a materialised plain-torch step run in the same
process, interleaved, and every time is the median over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
from pathlib import Path

import torch
from alone import attention_alone, gradient_error
from bench import Bench
from shapes import CRIAS, EPOCHS, PAPER_TOKENS
from table import table, write
from timing import GB, interleaved, log, matrix_rate, milliseconds, peak_gb
from transformers import __version__ as transformers_version
from trenchcoat_trainer.layers.prefetch import on_device


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
    write(args.out, results, table(results))


if __name__ == "__main__":
    main()
