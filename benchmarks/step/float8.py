"""The teacher's products in FP8, and bf16 weights stored [in, out], beside a Cria's step as it is.

    python benchmarks/step/float8.py            # a minute on an H200; writes results/float8_<gpu>.{json,md}

Random weights of Llama 3.1 405B's layers, as many as are told; all ways run in one process and take turns,
and every time is the median over the rounds.  Two passes, as not all copies of the weights fit at once: first
bf16 beside FP8, then bf16 stored [out, in], as it is, beside [in, out].
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench import Bench
from table import write
from timing import GB, interleaved, log, peak_gb
from trenchcoat_trainer.layers import LayerWeights
from trenchcoat_trainer.layers.float8 import (
    Float8Rows,
    add_rms_norm_rows,
    product,
    quantise_rows,
    swiglu_rows,
)
from trenchcoat_trainer.layers.fused import add_rms_norm, swiglu

MATRICES = ("qkv", "out", "gate_up", "down")
LONG = 4
"""Sequences of the second size."""


class Ways:
    """The same steps over the same Cria, its weights stored in several ways."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.plain = bench.layers

    def over(self, layers: list[LayerWeights], step: Callable[[torch.Tensor], object]) -> Callable:
        """Return a step that runs over other weights."""

        def run(x: torch.Tensor) -> object:
            self.bench.layers = layers
            try:
                return step(x)
            finally:
                self.bench.layers = self.plain

        return run

    @torch.no_grad()
    def float8_products(self, layers: list[LayerWeights], fast: bool = True) -> Callable:
        """Return the products of a transfer step in FP8 and nothing else: inputs are quantised beforehand."""
        inputs: dict[int, tuple[Float8Rows, Float8Rows]] = {}

        def run(x: torch.Tensor) -> None:
            tokens = x.shape[0] * x.shape[1]
            if tokens not in inputs:
                inputs[tokens] = quantise_rows(x.flatten(0, 1)), quantise_rows(self.bench.wide[:tokens])
            rows, wide = inputs[tokens]
            for i, layer in enumerate(layers):
                names = MATRICES[:1] if i + 1 == len(layers) else MATRICES
                for name in names:
                    given, weight = wide if name == "down" else rows, getattr(layer, name)
                    if fast:
                        product(given, weight)
                    else:
                        torch._scaled_mm(
                            given.values, weight.values.t(), scale_a=given.scales, scale_b=weight.scales.t(),
                            out_dtype=torch.bfloat16, use_fast_accum=False,
                        )  # fmt: skip

        return run

    @torch.no_grad()
    def between(self, is_float8: bool) -> Callable:
        """Return what stands between a transfer step's products alone, attention and RoPE left out."""
        norm, gated = (add_rms_norm_rows, swiglu_rows) if is_float8 else (add_rms_norm, swiglu)
        weight, eps = self.plain[0].input_norm, self.bench.shape.eps

        def run(x: torch.Tensor) -> None:
            gate_up = self.bench.gate_up[: x.shape[0] * x.shape[1]]
            for _ in self.plain[1:]:
                norm(x, x, weight, eps)
                norm(x, x, weight, eps)
                gated(gate_up)
                if is_float8:
                    quantise_rows(x)
            norm(x, x, weight, eps)

        return run


def turned(layer: LayerWeights) -> LayerWeights:
    """Return a layer whose matrices are stored [in, out], and read as [out, in]."""
    return replace(layer, **{name: getattr(layer, name).t().contiguous().t() for name in MATRICES})


def measure(args: argparse.Namespace) -> dict:
    """Run everything and return the results by key."""
    results: dict = {
        "hardware": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": __import__("triton").__version__,
            "cuda": torch.version.cuda,
        },
        "layers": args.layers,
        "rounds": args.rounds,
    }
    bench = Bench(args.layers, 1024, input_sets=3)
    bench.gate_up = torch.randn(LONG * 1024, 2 * bench.shape.mlp, device="cuda", dtype=torch.bfloat16)
    bench.wide = bench.gate_up[:, : bench.shape.mlp].contiguous()
    sizes = {"1 x 1024": bench.inputs, f"{LONG} x 1024": [bench.input(LONG, 1024) for _ in range(2)]}
    ways = Ways(bench)
    log("ready")
    float8 = [layer.in_float8() for layer in bench.layers]
    log("quantised")
    results["float8_gb"] = sum(x.nbytes for layer in float8 for x in vars(layer).values()) / GB
    results["differences"] = differences(bench, ways.over(float8, bench.transfer))
    log(results["differences"])
    transfer8 = ways.over(float8, bench.transfer)
    functions = {
        "teacher forward (Hugging Face)": bench.teacher,
        "teacher forward": bench.fused_teacher,
        "teacher forward, float8": ways.over(float8, bench.fused_teacher),
        "transfer step": bench.transfer,
        "transfer step, float8": transfer8,
        "products alone": bench.products,
        "products alone, float8": ways.float8_products(float8),
        "products alone, float8, accumulated in fp32": ways.float8_products(float8, fast=False),
        "norms and SwiGLU alone": ways.between(is_float8=False),
        "norms, SwiGLU and quantising alone, float8": ways.between(is_float8=True),
    }
    results["float8"] = compared(bench, sizes, args.rounds, functions)
    results["peak_gb"] = {
        name: peak_gb(functions[name], bench.inputs[0], bench.clear)
        for name in ("transfer step", "transfer step, float8")
    }
    log((results["float8"], results["peak_gb"]))
    results["float8_over_teacher"] = {
        size: row["transfer step, float8"] / row["teacher forward (Hugging Face)"]
        for size, row in results["float8"].items()
    }
    functions.clear()
    del float8, transfer8
    gc.collect()
    torch.cuda.empty_cache()
    other = [turned(layer) for layer in bench.layers]
    log("turned")
    steps = {
        "transfer step": bench.transfer,
        "products alone": bench.products,
        "block step": bench.block,
    }
    functions = {
        name + suffix: ways.over(layers, step)
        for name, step in steps.items()
        for suffix, layers in (("", bench.layers), (", [in, out]", other))
    }
    short = {"1 x 1024": sizes.pop("1 x 1024")}
    results["storage"] = compared(bench, short, args.rounds, functions)
    of_any_size = {name: run for name, run in functions.items() if not name.startswith("block")}
    results["storage"] |= compared(bench, sizes, args.rounds, of_any_size)
    return results


def compared(
    bench: Bench, sizes: dict[str, list[torch.Tensor]], rounds: int, functions: dict[str, Callable]
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each function at each size."""
    found = {}
    for size, inputs in sizes.items():
        for function in functions.values():
            function(inputs[0])
            bench.clear()
        found[size] = interleaved(functions, inputs, max(3, rounds // len(inputs[0])), bench.clear)
        torch.cuda.empty_cache()
    return found


def differences(bench: Bench, float8: Callable) -> dict[str, list[float]]:
    """Return, by layer, the relative differences of a step's losses and gradients from those in bf16."""
    x, found = bench.inputs[0], []
    for step in (bench.transfer, float8):
        losses = step(x).loss
        found.append((losses, [{name: t.grad for name, t in maps.items()} for maps in bench.maps]))
        bench.clear()
    (losses, gradients), (losses8, gradients8) = found
    of_gradients = [
        max(float((mine[name] - plain[name]).norm() / plain[name].norm()) for name in plain)
        for plain, mine in zip(gradients, gradients8, strict=True)
    ]
    return {"losses": ((losses8 - losses) / losses).tolist(), "gradients": of_gradients}


def table(r: dict) -> str:
    """Return the results for people."""
    lines = [f"{r['layers']} layers of Llama 3.1 405B, {r['hardware']}, milliseconds", ""]
    for part in ("float8", "storage"):
        columns = list(r[part])
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in r[part][columns[0]]:
            cells = [f"{r[part][size][name]:.1f}" if name in r[part][size] else "" for size in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    peaks = ", ".join(f"{name} {peak:.1f} GB" for name, peak in r["peak_gb"].items())
    ratios = ", ".join(f"{ratio:.2f} ({size})" for size, ratio in r["float8_over_teacher"].items())
    worst = {name: max(map(abs, values)) for name, values in r["differences"].items()}
    lines += [
        f"Transfer step in float8 over the teacher's forward: {ratios}.",
        f"Peak memory: {peaks}, with the copies in FP8 ({r['float8_gb']:.1f} GB) there in both.",
        f"Of a layer, at most: losses {worst['losses']:.1e} from bf16's, gradients {worst['gradients']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU with FP8 products and 15 GB for each layer")
    results = measure(args)
    write(args.out, results, table(results), "float8_")


if __name__ == "__main__":
    main()
