"""Sets of values, and the objects that come of them, in tests/charts/golden; UPDATE_GOLDEN=1 writes these."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHART, of_kind, render, run

GOLDEN = Path(__file__).parent / "golden"
SETS = sorted(path.name.removesuffix(".values.yaml") for path in GOLDEN.glob("*.values.yaml"))


def rendered(name: str) -> str:
    made = render("--values", str(GOLDEN / f"{name}.values.yaml"))
    assert made.returncode == 0, made.stderr
    return made.stdout


def without_long_files(text: str) -> list[dict[str, Any]]:
    """The objects; the spec of the definition and the dashboard stand in files of their own."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    for definition in of_kind(documents, "CustomResourceDefinition"):
        definition["spec"] = "files/crd.yaml"
    for config_map in of_kind(documents, "ConfigMap"):
        if "trenchcoat.json" in config_map.get("data", {}):
            config_map["data"]["trenchcoat.json"] = "files/dashboard.json"
    return documents


@pytest.mark.parametrize("name", SETS)
def test_objects_are_those_of_the_file(name: str) -> None:
    file = GOLDEN / f"{name}.yaml"
    found = without_long_files(rendered(name))
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(yaml.safe_dump_all(found, sort_keys=False, width=100))
    expected = list(yaml.safe_load_all(file.read_text()))
    assert found == expected, "if it is as it should be: UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", SETS)
def test_lint(name: str) -> None:
    made = run("lint", "--strict", str(CHART), "--values", str(GOLDEN / f"{name}.values.yaml"))
    assert made.returncode == 0, made.stdout


def test_every_value_is_turned_in_everything() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    turned = yaml.safe_load((GOLDEN / "everything.values.yaml").read_text())
    elsewhere = {"nameOverride", "watchNamespaces", "countGpus", "rbac"}
    assert defaults.keys() - turned.keys() - elsewhere == set()
