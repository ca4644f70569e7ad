"""The picture of the coat: the student's Crias, one on the other, layer by layer."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from trenchcoat_api.crias import CriaRange, cria_ranges

from trenchcoat_report.run import Run, is_softmax
from trenchcoat_report.theme import ERROR_STEPS, ERRORS, FAINT, INK, PAPER, drawing, inline

WIDTH = 8.2
"""Of the figure, in inches."""
ROW = 0.34
MOST_INCHES = 24.0
_GAP = 0.16
"""Between two Crias, in parts of a row."""


def draw(run: Run) -> str:
    """The stack, the first layers at the bottom; empty while the model is not known."""
    model = run.trenchcoat.status.model
    if model is None:
        return ""
    crias = cria_ranges(model.layers, run.spec.layers_per_cria)
    errors = {item.layer: float(item.error) for item in run.layers if item.error}
    if not errors:  # a status tells but of each Cria's worst layer
        for row in run.trenchcoat.status.crias:
            if row.error and row.index < len(crias):
                errors |= dict.fromkeys(crias[row.index].layers, float(row.error))
    bounds = steps([error for error in errors.values() if 0 < error < math.inf])
    row_inches = min(ROW, MOST_INCHES / len(crias))
    with drawing():
        figure = Figure(figsize=(WIDTH, row_inches * len(crias) + 1.25))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, 100)
        axes.set_ylim(-1.9 * ROW / row_inches, len(crias) + 1.6 * ROW / row_inches)
        _collar(axes, len(crias), ROW / row_inches)
        for cria in crias:
            _row(axes, run, cria, errors, bounds)
        _legend(axes, bounds, ROW / row_inches)
        return inline(
            figure, "coat", "The coat: Crias stacked, coloured by error", describe(run, crias, errors)
        )


def steps(errors: list[float]) -> list[float]:
    """Upper bounds of the colours' ranges, evenly spread; none without errors."""
    if not errors:
        return []
    low, span = min(errors), max(errors) - min(errors)
    return [low + span * (step + 1) / ERROR_STEPS for step in range(ERROR_STEPS)]


def describe(run: Run, crias: list[CriaRange], errors: dict[int, float]) -> str:
    """The same in words."""
    told = f"{len(crias)} Crias of {crias[-1].last + 1} layers, the first at the bottom."
    kinds = run.kinds()
    kept = [str(layer) for layer, kind in enumerate(kinds) if is_softmax(kind)]
    if kept:
        told += f" Softmax attention is kept in layers {', '.join(kept)}."
    if errors:
        worst, best = max(errors, key=errors.__getitem__), min(errors, key=errors.__getitem__)
        told += (
            f" The largest error is {errors[worst]:.3g}, in layer {worst}; the smallest {errors[best]:.3g}, "
            f"in layer {best}."
        )
    return told


def _collar(axes: Axes, rows: int, unit: float) -> None:
    top = rows + 0.1 * unit
    for left, right, tip in ((30, 47, 43), (70, 53, 57)):
        corners = [(left, top), (right, top), (tip, top + unit)]
        axes.add_patch(Polygon(corners, closed=True, facecolor=FAINT, edgecolor=INK, linewidth=0.8))
    axes.text(50, top + 0.5 * unit, "\N{UPWARDS ARROW} logits", ha="center", va="center", fontsize=9)


def _row(axes: Axes, run: Run, cria: CriaRange, errors: dict[int, float], bounds: list[float]) -> None:
    kinds, usual = run.kinds(), run.spec.attention.window
    left, width = 16.0, 56.0
    cell = width / run.spec.layers_per_cria
    for place, layer in enumerate(cria.layers):
        softmax = bool(kinds) and is_softmax(kinds[layer])
        box = (left + place * cell + 0.15, cria.index + _GAP / 2), cell - 0.3, 1 - _GAP
        face = PAPER if softmax else _color(errors.get(layer), bounds)
        axes.add_patch(Rectangle(*box, facecolor=face, edgecolor=INK, linewidth=0.6))
        if softmax:
            axes.add_patch(Rectangle(*box, facecolor="none", hatchcolor=INK, hatch="////", linewidth=0.0))
            axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=INK, linewidth=1.6))
        elif kinds and kinds[layer].window != usual:
            axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=INK, linewidth=2.2))
    middle = cria.index + 0.5
    axes.text(left - 1.2, middle, f"Cria {cria.index}", ha="right", va="center", fontsize=9)
    axes.text(left + width + 1.5, middle, _note(run, cria, errors), ha="left", va="center", fontsize=9)


def _note(run: Run, cria: CriaRange, errors: dict[int, float]) -> str:
    named = [errors[layer] for layer in cria.layers if layer in errors]
    rows = run.trenchcoat.status.crias
    state = rows[cria.index].state.value.lower() if cria.index < len(rows) else "not begun"
    layers = f"layers {cria}" if cria.first != cria.last else f"layer {cria.first}"
    return f"{layers}: error {max(named):.3g}" if named else f"{layers}: {state}"


def _color(error: float | None, bounds: list[float]) -> str:
    if error is None or not bounds:
        return FAINT
    return next((color for color, bound in zip(ERRORS, bounds, strict=True) if error <= bound), ERRORS[-1])


def _legend(axes: Axes, bounds: list[float], unit: float) -> None:
    axes.text(50, -0.45 * unit, "\N{UPWARDS ARROW} tokens", ha="center", va="center", fontsize=9)
    bottom = -1.75 * unit
    entries: list[tuple[str, str, str]] = []
    if bounds:
        entries += [(color, f"error to {bound:.2g}", "") for color, bound in zip(ERRORS, bounds, strict=True)]
    else:
        entries.append((FAINT, "no error measured", ""))
    entries.append((PAPER, "softmax kept", "////"))
    step = 96 / max(len(entries), 4)
    for number, (color, words, hatch) in enumerate(entries):
        x = 2 + number * step
        axes.add_patch(
            FancyBboxPatch((x, bottom), 1.6, 0.5 * unit, boxstyle="square,pad=0", facecolor=color,
                           edgecolor=INK, linewidth=0.6)
        )  # fmt: skip
        if hatch:
            axes.add_patch(
                Rectangle(
                    (x, bottom),
                    1.6,
                    0.5 * unit,
                    facecolor="none",
                    hatchcolor=INK,
                    edgecolor=INK,
                    linewidth=0.6,
                    hatch=hatch,
                )
            )
        axes.text(x + 2.3, bottom + 0.22 * unit, words, ha="left", va="center", fontsize=8)
