"""What is sent: the list, the page of a run, the login and what is said where something is wrong."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from trenchcoat_report.cluster import former, run_of
from trenchcoat_report.page import Live, render
from trenchcoat_report.verdict import state

from trenchcoat_viewer.runs import Shown

_FOLDER = files("trenchcoat_viewer")
_MOST = 64
"""Pages that are kept, at most: each may have a megabyte."""


@cache
def script() -> str:
    """What has pages follow their runs."""
    return (_FOLDER / "live.js").read_text()


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (files("trenchcoat_report") / "report.css").read_text()
    environment.globals["style"] = Markup(style)  # noqa: S704  (a file of that package)
    return environment


@cache
def _source(name: str) -> str:
    return (_FOLDER / name).read_text()


def _page(name: str, **values: object) -> str:
    frame = _environment().from_string(_source("frame.html.j2"))
    template = _environment().from_string(_source(name))
    body = Markup(template.render(**values))  # noqa: S704  (rendered with escaping)
    return frame.render(body=body, title=values.get("title", "Runs"), version=values.get("version", ""))


def overview(shown: Sequence[Shown], user: str, version: str) -> str:
    """The list of Trenchcoats.

    Args:
        shown: What the user may see.
        user: Who looks.
        version: Changes whenever the list does.
    """
    rows = []
    for item in shown:
        word, why = ("Unreadable", item.fault) if item.trenchcoat is None else state(run_of(item.trenchcoat))
        rows.append({"item": item, "state": word, "why": why, "status": _status(item)})
    return _page("list.html.j2", rows=rows, user=user, version=version)


def _status(item: Shown) -> object:
    return item.trenchcoat.status if item.trenchcoat is not None else None


def login(fault: str, root: str) -> str:
    """Where a token is asked for.

    Args:
        fault: Why the last one did not do, if there was one.
        root: The way to the list, such as ../../.
    """
    return _page("login.html.j2", title="Log in", fault=fault, root=root)


def message(title: str, words: str) -> str:
    """What is said where there is nothing to show."""
    return _page("message.html.j2", title=title, words=words)


class Reports:
    """Draws the pages of runs, one after the other, and keeps what was drawn last."""

    def __init__(self) -> None:
        self._drawing = threading.Lock()  # what draws is not safe between threads
        self._kept: OrderedDict[tuple[str, str, bool], tuple[str, str]] = OrderedDict()

    def page(self, shown: Shown, others: Sequence[Shown] | None) -> str:
        """The page of one run.

        Args:
            shown: The run.
            others: The others of its namespace, to stand beside it; None where the user may not see them.
        """
        if shown.trenchcoat is None:
            return message(f"{shown.namespace}/{shown.name}", f"It cannot be read: {shown.fault}")
        key = shown.namespace, shown.name, others is not None
        with self._drawing:
            kept = self._kept.get(key)
            if kept is not None and kept[0] == shown.version:
                self._kept.move_to_end(key)
                return kept[1]
            alike = [item.trenchcoat for item in others or () if item.trenchcoat is not None]
            live = Live(version=shown.version, root="../../")
            page = render(run_of(shown.trenchcoat), former(shown.trenchcoat, alike), live)
            self._kept[key] = shown.version, page
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return page
