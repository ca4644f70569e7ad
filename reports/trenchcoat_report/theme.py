"""Figures as inline SVG whose colours follow the page: light, dark, or ink on paper.

matplotlib draws in stand-in colours, each of which is a variable of the page's style sheet afterwards.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0102{number:02x}" for number in range(8))
RAN, WAITED, BROKEN, REUSED = "#010301", "#010302", "#010303", "#010304"
_VARIABLES = {
    INK: "--ink",
    FAINT: "--line",
    PAPER: "--paper",
    RAN: "--ran",
    WAITED: "--waited",
    BROKEN: "--broken",
    REUSED: "--reused",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES)},
}
ERROR_STEPS = 6
ERRORS = tuple(f"#0104{number:02x}" for number in range(ERROR_STEPS))
"""From little to much."""
_VARIABLES |= {color: f"--error-{number}" for number, color in enumerate(ERRORS)}

_STYLE: Any = {
    "svg.fonttype": "none",  # words stay words: to be searched, copied and set in the page's own font
    "svg.hashsalt": "trenchcoat",  # the same run, the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": PAPER,
    "legend.frameon": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and save figures within."""
    with matplotlib.rc_context(_STYLE):
        yield


def inline(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element with a title and a description, in the page's colours.

    Args:
        figure: made and saved within `drawing`.
        name: a word that no other figure of the page has; its ids begin with it.
        title: what it shows.
        description: what is to be seen in it, for who does not see it.
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue().decode()
    body = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    if box is None:
        raise AssertionError("matplotlib gives every SVG a viewBox")
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="', f'id="{name}-', inner)
    inner = re.sub(r"url\(#", f"url(#{name}-", inner)
    inner = re.sub(r'xlink:href="#', f'href="#{name}-', inner)
    inner = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"stroke-linejoin: round; stroke-linecap: butt", "", inner)
    for color, variable in _VARIABLES.items():
        inner = inner.replace(color, f"var({variable})")
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-about">{escape(description)}</desc>{inner}</svg>'
    )
