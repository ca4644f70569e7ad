"""The results as tables, and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_COLOURS = {"teacher": "#6b7280", "standard": "#3b7dd8", "window": "#2f9e6e", "lolcats": "#d8803b"}


def write(file: Path) -> None:
    """Write tables of the lines of `file` beside it, and a picture where steps have several contexts."""
    cases: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        found = json.loads(line)
        key = (found["shape"], found["batch"], found["context"])
        cases.setdefault(key, {}).setdefault(found["model"], {}).update(found)
    measured = {name for models in cases.values() for found in models.values() for name in found}
    makers = {"prefill_ms": _prefills, "step_ms": _steps}
    parts = [make(cases) for name, make in makers.items() if name in measured]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    if "step_ms" in measured:
        _picture(cases, file.with_suffix(".svg"))


def _of(found: dict[str, Any], teacher: dict[str, Any], name: str, form: str, unit: float = 1.0) -> str:
    """A number in so many units, and in brackets what it is of the teacher's."""
    told = format(found[name] / unit, form)
    is_own = found is teacher or name not in teacher
    return told if is_own else f"{told} ({found[name] / teacher[name]:.2f})"


def _measured(cases: dict[Any, dict[str, dict[str, Any]]], name: str) -> Iterator[tuple[str, Any, Any]]:
    """What has a number of this name: the row's first cells, what was found, and the teacher's beside it."""
    for (shape, batch, context), models in sorted(cases.items(), key=_place):
        for model, found in sorted(models.items(), key=lambda item: item[0] != "teacher"):
            if name in found:
                yield f"| {shape} | {batch} x {context:,} | {model} |", found, models.get("teacher", {})


def _prefills(cases: dict[Any, dict[str, dict[str, Any]]]) -> str:
    rows = ["| shape | prompts | model | prefill, ms | peak GB |", "|---|---|---|---|---|"]
    for head, found, teacher in _measured(cases, "prefill_ms"):
        ms = _of(found, teacher, "prefill_ms", ".1f")
        rows.append(f"{head} {ms} | {_of(found, teacher, 'prefill_peak_bytes', '.2f', 1e9)} |")
    return "\n".join(rows)


def _steps(cases: dict[Any, dict[str, dict[str, Any]]]) -> str:
    rows = [
        "| shape | sequences | model | step, ms | tokens/s | state, GB | moved, GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for head, found, teacher in _measured(cases, "step_ms"):
        rows.append(
            f"{head} {_of(found, teacher, 'step_ms', '.2f')} | {found['tokens_per_second']:,.0f} "
            f"| {found['state_bytes'] / 1e9:.3f} | {found['bytes_moved_per_second'] / 1e9:,.0f} |"
        )
    return "\n".join(rows)


def _place(item: tuple[tuple[str, int, int], Any]) -> tuple[int, int, int]:
    shape, batch, context = item[0]
    order = ["tiny", "smollm2", "llama-1b", "llama-8b"]
    return order.index(shape), batch, context


def _picture(cases: dict[Any, dict[str, dict[str, Any]]], path: Path) -> None:
    """A step's time over the context, a panel for each shape; dashed: a batch of one."""
    timed = {key: models for key, models in cases.items() if any("step_ms" in x for x in models.values())}
    contexts: dict[str, set[int]] = {}
    for shape, _, context in sorted(timed, key=lambda key: _place((key, None))):
        contexts.setdefault(shape, set()).add(context)
    shapes = [shape for shape, found in contexts.items() if len(found) > 1]
    if not shapes:
        return
    with matplotlib.rc_context({"svg.hashsalt": "decode", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.6 * len(shapes), 3.2), layout="constrained")
        panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
        for panel, shape in zip(panels, shapes, strict=True):
            for batch in sorted({key[1] for key in timed if key[0] == shape}):
                for model, colour in _COLOURS.items():
                    points = sorted(
                        (context, models[model]["step_ms"])
                        for (of, size, context), models in timed.items()
                        if (of, size) == (shape, batch) and "step_ms" in models.get(model, {})
                    )
                    if points:
                        label = f"{model}, batch {batch}"
                        style = "--" if batch == 1 else "-"
                        panel.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            places = sorted(contexts[shape])
            panel.set_xticks(places, [f"{place // 1024}k" for place in places])
            panel.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
            panel.minorticks_off()
            panel.set_title(shape, loc="left")
            panel.set_xlabel("tokens of context")
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=8, handlelength=3)
        panels[0].set_ylabel("a step, ms")
        figure.savefig(path, format="svg", metadata={"Date": None})
