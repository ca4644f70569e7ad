"""Perplexity by length and recall by distance, of the forms of the model that matter most."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from trenchcoat_api.results import ModelForm, Probe

from trenchcoat_report.run import Run
from trenchcoat_report.theme import SERIES, drawing, inline

FORMS = {
    ModelForm.TEACHER: ("teacher", "o"),
    ModelForm.ADAPTED_TEACHER: ("adapted teacher", "s"),
    ModelForm.WINDOWED_TEACHER: ("teacher cut to a window", "v"),
    ModelForm.STITCHED: ("student", "D"),
}
_PROBES = {Probe.COPY: "Tokens copied", Probe.PASSKEY: "Pass key told"}

Lines = dict[str, dict[int, float]]
"""Values by length or distance, by form."""


def draw(run: Run) -> str:
    """One panel for perplexity and one for each probe; empty before the evaluation."""
    panels = [("Perplexity by length", perplexities(run))]
    panels += [(f"{words}, by distance", recall(run, probe)) for probe, words in _PROBES.items()]
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        return ""
    with drawing():
        figure = Figure(figsize=(8.2, 3.3), layout="constrained")
        for number, (title, lines) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            _panel(axes, title, lines)
            if number > 0 or not perplexities(run):
                axes.set_ylim(-0.04, 1.04)
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
        described = " ".join(_told(title, lines) for title, lines in panels)
        return inline(figure, "quality", "Quality of the student beside its teacher", described)


def perplexities(run: Run) -> Lines:
    """Perplexity by tokens in a sequence."""
    evaluation = run.trenchcoat.status.evaluation
    first = evaluation.sequence_length if evaluation is not None else run.spec.data.sequence_length
    lines: Lines = {}
    for form in FORMS:
        item = run.perplexity(form)
        if item is not None:
            longer = {int(length): float(value) for length, value in item.longer.items()}
            lines[form] = {first: float(item.perplexity), **longer}
    return lines


def recall(run: Run, probe: Probe) -> Lines:
    """Shares given back by distance in tokens."""
    evaluation = run.trenchcoat.status.evaluation
    rows = [row for row in evaluation.recall if row.probe == probe] if evaluation is not None else []
    lines: Lines = {}
    for form in FORMS:
        values = {row.distance: float(row.shares[form]) for row in rows if form in row.shares}
        if values:
            lines[form] = values
    return lines


def _panel(axes: Axes, title: str, lines: Lines) -> None:
    for number, (form, (words, marker)) in enumerate(FORMS.items()):
        points = sorted(lines.get(form, {}).items())
        if points:
            axes.plot(
                *zip(*points, strict=True), color=SERIES[number], marker=marker, markersize=6, linewidth=2,
                label=words, clip_on=False,
            )  # fmt: skip
    ticks = sorted({x for values in lines.values() for x in values})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.tick_params("x", labelsize=8, rotation=0 if len(ticks) < 4 else 40)
    axes.margins(x=0.12, y=0.15)
    axes.set_title(title, fontsize=10, loc="left")


def _told(title: str, lines: Lines) -> str:
    words = []
    for form, values in lines.items():
        last = max(values)
        words.append(f"{FORMS[ModelForm(form)][0]} {values[last]:.4g}")
    return f"{title}: at {max(max(values) for values in lines.values())} tokens {', '.join(words)}."
