"""What was measured, as tables for people."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def table(results: Rows) -> str:
    """Return Markdown of the results of one file."""
    texts = [text for part in PARTS for text in [part(results)] if text]
    failed = [
        f"- {row['part']} failed: {row['failed'].splitlines()[0]}" for row in results if "failed" in row
    ]
    return "\n\n".join([*texts, *(["\n".join(failed)] if failed else [])]) + "\n"


def rows(results: Rows, part: str) -> Rows:
    """Return the results of a part."""
    return [row for row in results if row["part"] == part and "failed" not in row]


def grid(head: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def conditions(results: Rows) -> str:
    """Return what was run on what."""
    texts = []
    for row in rows(results, "conditions"):
        versions = ", ".join(
            f"{name} {row[name]}"
            for name in ("python", "torch", "cuda", "nccl", "transformers", "deepspeed", "peft")
            if row.get(name)
        )
        variables = " ".join(f"{name}={value}" for name, value in row["environment"].items())
        words = " ".join(row["command"])
        texts.append(f"`python benchmarks/several_gpus {words}`: {row['hardware']}; {versions}; {variables}")
    return "\n\n".join(texts)


def collect(results: Rows) -> str:
    """Return the pipeline's rates, a table for each model."""
    found = rows(results, "collect")
    sizes = dict.fromkeys(row["size"] for row in found)
    return "\n\n".join(_collect([row for row in found if row["size"] == size]) for size in sizes)


def _collect(found: Rows) -> str:
    alone = [row["tokens_per_second"] for row in found if row["ranks"] == 1]
    lines = []
    for row in found:
        linear = f"{row['tokens_per_second'] / row['ranks'] / alone[0]:.3f}" if alone else ""
        lines.append(
            [
                str(row["ranks"]),
                f"{row['tokens_per_second']:,.0f}",
                linear,
                f"{row['tflops']:.1f}",
                f"{row['of_matrix_rates']:.3f}",
                f"{row['of_products_alone']:.3f}" if "of_products_alone" in row else "",
                f"{row['written_gb_per_second']:.2f}",
                f"{row['written_alone_gb_per_second']:.2f}" if "at_once" in row else "",
                f"{max(row['peak_memory_gb']):.1f}",
            ]
        )
    first = found[0]
    title = (
        f"collect: {first['layers']} layers of {first['size']} shapes, {first['boundaries']} boundaries, "
        f"{first['sequences']} sequences"
    ) + (f", {first['at_once']} at once" if "at_once" in first else "")
    head = [
        "ranks", "tokens/s", "of linear", "TFLOP/s", "of the matrix rates", "of products alone",
        "GB/s written", "writing alone", "peak GB",
    ]  # fmt: skip
    return f"{title}\n\n{grid(head, lines)}"


def stitch(results: Rows) -> str:
    """Return the stitch's rates by engine."""
    lines = []
    for row in rows(results, "stitch"):
        other = [
            each["tokens_per_second"]
            for each in rows(results, "stitch")
            if (each["size"], each["ranks"], each["engine"]) == (row["size"], row["ranks"], "fsdp2")
        ]
        received = row["received_gb"]
        gathered = sum(size for name, size in received.items() if "gather" in name)
        held = [name for name, is_held in row["held"].items() if is_held]
        lines.append(
            [
                f"{row['size']}, {row['layers']} layers",
                str(row["ranks"]),
                " ".join([row["engine"], *(f"{name}={value}" for name, value in row["changes"].items())]),
                " and ".join(held) or "nothing",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['tokens_per_second'] / other[0]:.2f}" if other else "",
                of_rate(row, "tflops"),
                of_rate(row, "tflops_with_recomputing"),
                f"{max(row['peak_memory_gb']):.1f}",
                f"{gathered:.3g}",
                share(row, "waits_for_nccl_share"),
                share(row, "idle_share"),
                f"{row['losses'][0]:.4f} {row['losses'][-1]:.4f}",
            ]
        )
    head = [
        "model", "ranks", "engine", "held", "tokens/s", "of FSDP2", "of the matrix rates",
        "with what is recomputed", "peak GB", "GB gathered a step", "waits for NCCL", "nothing runs",
        "first and last loss",
    ]  # fmt: skip
    return f"stitch\n\n{grid(head, lines)}" if lines else ""


def of_rate(row: dict[str, Any], name: str) -> str:
    """Return products a second, of what all ranks can do; empty where they were not counted."""
    return f"{row[name] / row['matrix_tflops_of_all']:.2f}" if name in row else ""


def share(row: dict[str, Any], name: str) -> str:
    """Return a share in percent, empty where it was not measured."""
    return f"{100 * row[name]:.0f}%" if name in row else ""


def load(results: Rows) -> str:
    """Return what hosts hold while they load."""
    lines = [
        [
            str(row["ranks"]),
            f"{max(row['partition_gb']):.2f}",
            f"{max(row['host_gb_beside']):.2f}",
            f"{max(row['layers_beside']):.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows(results, "load")
    ]
    head = ["ranks", "GB of a partition", "GB of the host beside it, at most", "in layers", "seconds"]
    return f"load\n\n{grid(head, lines)}" if lines else ""


def crias(results: Rows) -> str:
    """Return how long the Crias took, and could have taken at best."""
    return "\n".join(
        f"{row['crias']} Crias on {row['ranks']} at a time: {row['makespan_s']:.1f} s, the bound is "
        f"{row['bound_s']:.1f} s ({row['of_bound']:.3f} x); one takes {min(row['cria_seconds']):.1f} to "
        f"{max(row['cria_seconds']):.1f} s"
        for row in rows(results, "crias")
    )


def ranks(results: Rows) -> str:
    """Return how far losses are apart, and how soon ranks end."""
    lines = []
    for row in rows(results, "curves"):
        for count, told in row["runs"].items():
            lines.append(
                f"stitch on {count} ranks: last loss {told['losses']['stitch']:.5f}, its curve within "
                f"{told['furthest_from_first']:.1e} of the first's"
            )
    for row in rows(results, "kill"):
        lines.append(
            f"of {row['ranks']} ranks one was killed in a step: the others had ended "
            f"{row['ended_after_s']:.1f} s later (exit code {row['exit_code']}); {row['then']} went on from "
            f"step {row['saved_at_step']}, and its curve is within {row['furthest_from_undisturbed']:.1e} of "
            "the undisturbed"
        )
    return "\n".join(f"- {line}" for line in lines)


PARTS = (conditions, collect, stitch, load, crias, ranks)
