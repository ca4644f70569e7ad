"""What `kubectl trenchcoat status` prints: every file of data/ is one terminal, read as documentation.

Set UPDATE_GOLDEN=1 to write what is printed now, and read the difference.
"""

import os
from datetime import datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from trenchcoat_kubectl import table

from tests.plugin import samples

DATA = Path(__file__).parent / "data"
NOW = datetime.fromisoformat(samples.NOW)


def printed(renderable: RenderableType, width: int) -> str:
    file = StringIO()
    Console(file=file, width=width, highlight=False).print(renderable)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def check(name: str, text: str) -> None:
    file = DATA / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", samples.ALL)
def test_status(name: str, width: int) -> None:
    check(f"{name}-{width}", printed(table.status(samples.ALL[name](), NOW, width), width))


def test_overview() -> None:
    everything = [make() for make in samples.ALL.values()]
    check("overview-120", printed(table.overview(everything, namespaces=True), 120))
    check("overview-80", printed(table.overview(everything, namespaces=False), 80))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", samples.ALL)
def test_no_line_is_longer_than_the_terminal_and_rows_take_one(name: str, width: int) -> None:
    trenchcoat = samples.ALL[name]()
    lines = printed(table.status(trenchcoat, NOW, width), width).splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line for line in lines if "Cria " in line and line.startswith("   ")]
    if len(trenchcoat.status.crias) <= table.FOLD_ABOVE:
        assert len(rows) == len(trenchcoat.status.crias)


@pytest.mark.parametrize(
    ("curve", "line"),
    [
        ([], ""),
        (["1"], "▁"),
        (["100", "10", "1"], "█▅▁"),
        (["nan", "2", "1"], " █▁"),
        (["inf", "-1", "0"], ""),
        ([str(2.0**-step) for step in range(32)], "█▇▆▆▅▄▃▂▂▁"),
    ],
)
def test_sparkline(curve: list[str], line: str) -> None:
    assert table.sparkline(curve) == line
