"""Values, their schema and their description: one cannot change without the others."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from tests.charts.helm import CHART, TOP

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Given on as they are to Kubernetes, which knows them: sources of volumes. And the values of a parent chart.
OPEN = {("global",), *(("volumes", kind) for kind in SCHEMA["definitions"]["volume"]["properties"])}


def objects(
    node: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every schema of an object, with the path of values that it is for."""
    if "$ref" in node:
        node = SCHEMA["definitions"][node["$ref"].rsplit("/", 1)[1]]
    if node.get("type") == "object":
        yield path, node
    for name, child in node.get("properties", {}).items():
        yield from objects(child, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from objects(node[key], path)


def test_no_object_takes_a_key_that_it_does_not_know() -> None:
    for path, node in objects(SCHEMA):
        # A map, of labels say, has keys of the user's own, and a schema for what stands at them.
        closed = node.get("additionalProperties") is False or isinstance(
            node.get("additionalProperties"), dict
        )
        assert closed or path in OPEN, path


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    def compare(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        properties = node["properties"]
        assert values.keys() == properties.keys() - {"global"}, path
        for name, value in values.items():
            if "properties" in properties[name]:
                compare(value, properties[name], f"{path}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), SCHEMA, "")


def test_readme_and_descriptions_are_current() -> None:
    made = subprocess.run(
        [sys.executable, str(TOP / "hack" / "chart-docs"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
