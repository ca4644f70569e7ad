"""The run as a Gantt chart in SVG, and the table for people."""

from __future__ import annotations

from html import escape
from typing import Any

_ROW, _WIDTH, _LEFT = 18, 900, 90
_COLOURS = {"complete": "#3b7dd8", "lost": "#d8503b"}


def gantt(bars: list[dict[str, Any]], title: str) -> str:
    """A row for each artifact; red is what a lost node ended."""
    names = list(dict.fromkeys(bar["name"] for bar in bars))
    longest = max(bar["ended"] for bar in bars)
    height = (len(names) + 2) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="4" y="13">{escape(title)}</text>',
    ]
    for row, name in enumerate(names, 1):
        lines.append(f'<text x="4" y="{row * _ROW + 13}">{escape(name)}</text>')
        for bar in (bar for bar in bars if bar["name"] == name):
            x, width = (value * _WIDTH / longest for value in (bar["began"], bar["ended"] - bar["began"]))
            lines.append(
                f'<rect x="{_LEFT + x:.1f}" y="{row * _ROW + 3}" width="{max(1, width):.1f}" '
                f'height="{_ROW - 5}" fill="{_COLOURS[bar["outcome"]]}"/>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| GPUs for Crias | nodes lost | bound, h | seconds simulated | beyond the bound, s | of the bound | "
        "at full length | work lost, simulated min | API requests |"
    )
    rows = [
        f"| {item['gpus']} | {item['nodes_lost']} | {item['bound_hours']:.2f} | {item['seconds']:.1f} | "
        f"{item['beyond_seconds']:.1f} | {item['of_bound']:.3f} | {_ratio(item['at_full_length'])} | "
        f"{item['lost_minutes']:.1f} | {item['api_requests']} |"
        for item in results
    ]
    return "\n".join([head, "|" + "---|" * 9, *rows, ""])
