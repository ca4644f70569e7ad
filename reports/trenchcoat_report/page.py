"""The page as a whole."""

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from trenchcoat_api.sheets import remarks

from trenchcoat_report import tables, verdict
from trenchcoat_report.figures import coat, curves, gantt, quality
from trenchcoat_report.instructions import instructions
from trenchcoat_report.planned import planned
from trenchcoat_report.run import MAX_FORMER, Run, spec_document


class Live(NamedTuple):
    """Where a page is served that follows its run."""

    version: str
    """Of what is shown; another one for each change."""
    root: str
    """The way to the list of runs and to live.js, such as ../../."""


def render(run: Run, former: Sequence[Run] = (), live: Live | None = None) -> str:
    """The report as one HTML page that loads nothing.

    Args:
        run: What to tell of.
        former: Runs to compare with, the latest first; at most `MAX_FORMER` are told of.
        live: Where it is served, if it is: then it loads the script that has it follow the run.
    """
    status = run.trenchcoat.status
    state, why = verdict.state(run)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files("trenchcoat_report")
    template = environment.from_string((folder / "report.html.j2").read_text())
    pictures = {
        "coat": coat.draw(run),
        "quality": quality.draw(run),
        "curves": curves.draw(run),
        "gantt": gantt.draw(run),
    }
    return template.render(
        run=run,
        state=state,
        why=why,
        sentence=verdict.sentence(run),
        figures=verdict.figures(run),
        bounds=verdict.bounds(run),
        remarks=remarks(status.perplexities, status.evaluation) if status.perplexities else [],
        pictures={name: Markup(svg) for name, svg in pictures.items()},  # noqa: S704  (drawn here, words escaped)
        quality=tables.quality(run),
        layers=tables.layers(run),
        losses=tables.losses(run),
        times=tables.times(run),
        plan=planned(run),
        lineage=tables.lineage(run),
        comparison=tables.comparison(run, former[:MAX_FORMER]),
        instructions=instructions(run),
        spec=yaml.safe_dump(spec_document(run), sort_keys=False, allow_unicode=True),
        told_at=tables.moment(run.told_at),
        style=Markup((folder / "report.css").read_text()),  # noqa: S704  (a file of this package)
        live=live,
    )
