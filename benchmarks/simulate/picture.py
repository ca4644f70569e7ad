"""The runs as Gantt charts in SVG, and the table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

_COLOURS = {"complete": "#3b7dd8", "lost": "#d8503b", "tenants": "#b9bec6"}
_INCHES_A_ROW = 0.16


def gantt(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel for each run, a row for each artifact; red is what a lost node ended."""
    rows = [list(dict.fromkeys(bar["name"] for bar in run["bars"])) for run in runs]
    heights = [len(names) + 3 for names in rows]
    with matplotlib.rc_context({"svg.hashsalt": "simulate", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(9, sum(heights) * _INCHES_A_ROW), layout="constrained")
        panels = figure.subplots(len(runs), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for panel, run, names in zip(panels, runs, rows, strict=True):
            scale = run["bound_hours"] / run["bound_seconds"]
            for bar in run["bars"]:
                wide = (bar["began"] * scale, (bar["ended"] - bar["began"]) * scale)
                panel.broken_barh(
                    [wide], (names.index(bar["name"]) - 0.35, 0.7), color=_COLOURS[bar["outcome"]]
                )
            panel.set_yticks(range(len(names)), names)
            panel.invert_yaxis()
            panel.axvline(run["bound_hours"], color="#444444", linewidth=0.8, linestyle=":")
            panel.set_title(
                f"{run['kind']}, {run['gpus']} GPUs for Crias: {run['of_bound']:.2f} of the bound", loc="left"
            )
            panel.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel("simulated hours; dotted: the bound")
        named = {"computed": "complete", "ended by a lost node": "lost"}
        legend = [Patch(color=_COLOURS[colour], label=label) for label, colour in named.items()]
        figure.legend(handles=legend, loc="outside lower right", ncols=2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


_COLUMNS = {
    "GPUs for Crias": lambda run: f"{run['gpus']}",
    "run": lambda run: run["kind"],
    "seed": lambda run: "-" if run["seed"] is None else f"{run['seed']}",
    "nodes lost": lambda run: f"{run['nodes_lost']}",
    "tenants' Jobs": lambda run: f"{run['tenants']}",
    "bound, h": lambda run: f"{run['bound_hours']:.2f}",
    "of the bound": lambda run: f"{run['of_bound']:.3f}",
    "at full length": lambda run: "-" if run["at_full_length"] is None else f"{run['at_full_length']:.4f}",
    "idle while Crias run": lambda run: f"{run['idle_share']:.0%}",
    "of it unavoidable": lambda run: f"{run['unavoidable_idle_share']:.0%}",
    "computed anew, simulated min": lambda run: f"{run['lost_minutes']:.1f}",
    "longest loss, checkpoints": lambda run: f"{run['longest_loss_checkpoints']:.1f}",
}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| " + " | ".join(cell(run) for cell in _COLUMNS.values()) + " |" for run in results]
    return "\n".join(["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS), *rows, ""])


def waits(results: list[dict[str, Any]]) -> str:
    """Markdown: simulated minutes that the rows of Trenchcoats waited, by reason."""
    ours = [run for run in results if run["waited_minutes"] is not None]
    reasons = sorted({reason for run in ours for reason in run["waited_minutes"]})
    head = "| GPUs for Crias | seed | " + " | ".join(reasons) + " |"
    lines = [
        f"| {run['gpus']} | {'-' if run['seed'] is None else run['seed']} | "
        + " | ".join(f"{run['waited_minutes'].get(reason, 0):.0f}" for reason in reasons)
        + " |"
        for run in ours
    ]
    return "\n".join([head, "|" + "---|" * (2 + len(reasons)), *lines, ""])
