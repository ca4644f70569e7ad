"""The results for people."""

from __future__ import annotations

import json
from pathlib import Path


def write(folder: Path, results: dict, text: str, prefix: str = "") -> None:
    """Leave results and their table in a folder, named after the GPU, and print the table."""
    gpu = results["hardware"].lower().replace("nvidia ", "").split()[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}{gpu}.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / f"{prefix}{gpu}.md").write_text(text)
    print(text)


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
