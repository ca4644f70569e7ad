"""A plan on a terminal: what somebody may want to copy stays in one piece."""

import io

import pytest
from rich.console import Console
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.planning.tables import tables

from tests.api.planning.models import NAMES, example, model


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_keys_are_whole_on_any_terminal(name: str, is_complete: bool, width: int) -> None:
    plan = make_plan(Outline.of(example(name), model(name)), Given(complete=lambda key: is_complete))
    console = Console(file=io.StringIO(), width=width)
    for table in tables(plan, example(name), width):
        console.print(table)
    told = console.file.getvalue()
    assert max(map(len, told.splitlines())) <= width
    for stage in plan.stages:
        assert (stage.keys[0] if stage.jobs == 1 else f"{stage.keys[0][:6]}, {stage.keys[1][:6]}") in told
    assert told.count("complete ") == (len(plan.stages) if is_complete else 0)
    assert "PyTorchJob, " in told
