"""The manifests of examples/ fit the GPUs that they are for, and docs/planning.md shows what is planned."""

import runpy
from pathlib import Path

import pytest
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan

from tests.api.planning.models import EXAMPLES, NAMES, example, model

TOP = Path(__file__).parents[3]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_fits(name: str) -> None:
    plan = make_plan(Outline.of(example(name), model(name)), Given())
    assert plan.misfits == []
    assert [note for note in plan.notes if "raise it" in note] == []


def test_every_manifest_is_tried() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == {*NAMES, "tiny"}
    assert {file.stem for file in (EXAMPLES / "models").glob("*.json")} == set(NAMES)


def test_the_documentation_shows_what_is_planned() -> None:
    """`make plan-table` writes it."""
    table = runpy.run_path(str(TOP / "hack" / "plan-table"))
    page = (TOP / "docs" / "planning.md").read_text()
    assert table["with_table"](page) == page
    assert table["with_table"](page.replace("8.5 TB", "8.6 TB")) == page
