"""What was measured, as a table for people."""

from typing import Any


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    resident = found["resident"]
    rows = [
        ("attention transfer of a batch on the GPU, to the last layer's attention", resident["transfer"]),
        ("the same to the Cria's end", resident["through"]),
    ]
    for index, item in enumerate(found["crias"]):
        rows += [
            (f"Cria {index}'s Job, the epoch that collects for Cria {index + 1}", item["collecting"]),
            (f"Cria {index}'s Job, the other epoch", item["not_collecting"]),
            (f"Cria {index}'s Job, both", item["both_epochs"]),
        ]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"# {found['hardware']}",
        "",
        f"`{found['command']}`; {versions}. Crias of {found['layers']} layers, hidden size "
        f"{found['hidden_size']}; {found['sequences']} sequences of {found['sequence_length']} tokens; "
        f"a boundary is {found['boundary_bytes'] / 1e9:.2f} GB.",
        "",
        "| | tokens/s | of the first row |",
        "|---|---|---|",
        *(f"| {name} | {rate:,.0f} | {rate / resident['transfer']:.3f} |" for name, rate in rows),
        "",
        f"The slower Job, both epochs: **{found['ratio_both_epochs']:.3f}** of the rate of transfer alone; "
        f"the epoch that collects: {found['ratio_collecting']:.3f}, {found['tflops_collecting']:.0f} "
        f"TFLOP/s of dense products. It waits for data and its device for {100 * found['idle_share']:.1f}% "
        "of the time. "
        f"GPU memory, at most: {found['gpu_memory_bytes'] / 1e9:.1f} GB.",
        "",
    ]
    return "\n".join(lines)
