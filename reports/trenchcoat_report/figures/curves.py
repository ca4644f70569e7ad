"""Loss curves: a small panel for each Cria, the stitch and the adapted teacher."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from trenchcoat_report.run import Run
from trenchcoat_report.theme import SERIES, drawing, inline

COLUMNS = 4
MOST = 24
"""Panels; of more Crias those with the largest final loss are drawn."""


def draw(run: Run) -> str:
    """All curves; empty while there are none."""
    found = curves(run)
    if not found:
        return ""
    rows = -(-len(found) // COLUMNS)
    with drawing():
        figure = Figure(figsize=(8.2, 0.5 + 1.3 * rows), layout="constrained")
        for number, (name, values) in enumerate(found.items()):
            _panel(figure.add_subplot(rows, COLUMNS, number + 1), name, values)
        return inline(figure, "curves", "Losses over the steps of the latest phase", describe(found))


def curves(run: Run) -> dict[str, list[float]]:
    """Losses by name; losses that are no positive numbers are left out."""
    told = {f"Cria {row.index}": row.curve for row in run.trenchcoat.status.crias} | run.curves
    found = {}
    for name, curve in told.items():
        values = [loss for loss in map(float, curve) if 0 < loss < math.inf]
        if len(values) > 1:
            found[name] = values
    if len(found) <= MOST:
        return found
    others = [name for name in found if not name.startswith("Cria ")]
    ranked = sorted(set(found).difference(others), key=lambda name: -found[name][-1])
    kept = {*others, *ranked[: MOST - len(others)]}
    return {name: values for name, values in found.items() if name in kept}


def describe(found: dict[str, list[float]]) -> str:
    """First and last loss of each."""
    return (
        "; ".join(f"{name} from {values[0]:.4g} to {values[-1]:.4g}" for name, values in found.items()) + "."
    )


def _panel(axes: Axes, name: str, values: list[float]) -> None:
    share = [position / (len(values) - 1) for position in range(len(values))]
    axes.plot(share, values, color=SERIES[3], linewidth=1.8)
    axes.set_title(name, fontsize=9, loc="left")
    axes.set_xticks([])
    if max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params("y", labelsize=8)
    axes.set_title(f"{values[-1]:.4g}", fontsize=9, loc="right")
