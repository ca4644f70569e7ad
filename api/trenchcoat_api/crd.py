"""The CustomResourceDefinition, generated from the models: `python -m trenchcoat_api.crd` prints it."""

import copy
import re
import sys
from typing import Any

import yaml

from trenchcoat_api import constants
from trenchcoat_api.presets import PRESET_MARK
from trenchcoat_api.resource import NAME
from trenchcoat_api.rules import VALIDATIONS, cel_string, matches
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.status import TrenchcoatStatus
from trenchcoat_api.strings import DECIMAL_PATTERN

_ABSENT = object()
"""Default, while the definition is made, of an object with rules that may be left out as a whole."""

# A pattern on metadata.name would say less, and below metadata the API server takes no rules.
_NAME_RULE = {
    "rule": matches("self.metadata.name", NAME.pattern),
    "message": f"metadata.name: {NAME.remedy}",
    "messageExpression": '"metadata.name \'" + self.metadata.name + '
    + cel_string(f"' cannot be used: {NAME.remedy}"),
}

_COLUMNS = [
    ("Stage", "string", ".status.stage", "What it does now", 0),
    ("Crias", "string", ".status.criasDone", "Trained Crias of all", 0),
    ("Loss", "string", ".status.loss", "Latest loss of the running stage", 0),
    ("Progress", "string", ".status.progress", "Share of the whole run that is done", 0),
    ("ETA", "string", ".status.eta", "Time until the running stage is done", 0),
    (
        "Succeeded",
        "string",
        ".status.conditions[?(@.type=='Succeeded')].status",
        "Whether all is complete",
        0,
    ),
    ("Ratio", "string", ".status.perplexityRatio", "The student's perplexity over the teacher's", 1),
    ("Recall", "string", ".status.keptRecall", "What the student copies of what the teacher copies", 1),
    ("Waiting", "string", ".status.waiting", "What waits for what, since when, and what would end it", 1),
    ("Message", "string", ".status.conditions[?(@.type=='Stalled')].message", "Why nothing goes on", 1),
    ("Age", "date", ".metadata.creationTimestamp", "Since it was made", 0),
]


def _structural(node: Any, definitions: dict[str, Any]) -> Any:
    """Turn pydantic's JSON schema into the structural subset that the API server takes."""
    if isinstance(node, list):
        return [_structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if PRESET_MARK in node:
        node = {key: value for key, value in node.items() if key not in (PRESET_MARK, "default")}
    if "$ref" in node:
        target = copy.deepcopy(definitions[node["$ref"].rsplit("/", 1)[1]])
        target.update({key: value for key, value in node.items() if key != "$ref"})
        return _structural(target, definitions)
    if "allOf" in node and len(node["allOf"]) == 1:
        return _structural(
            {**node["allOf"][0], **{k: v for k, v in node.items() if k != "allOf"}}, definitions
        )
    if "anyOf" in node:
        (variant,) = [item for item in node["anyOf"] if item != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        made = _structural({**variant, **rest}, definitions)
        if VALIDATIONS in made and "properties" in made:
            made["default"] = _ABSENT
        return made

    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: _structural(item, definitions) for name, item in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = _structural(value, definitions)
        elif key == "additionalProperties" and value:
            result["x-kubernetes-preserve-unknown-fields"] = True
        elif key not in ("title", "additionalProperties"):
            result[key] = value  # titles repeat names; what is unknown the API server prunes by itself
    return result


def _defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """What an object is filled in with."""
    filled = {}
    for name, child in schema["properties"].items():
        if "default" in child:
            nested = child["type"] == "object" and "properties" in child
            filled[name] = _defaults(child) if nested else copy.deepcopy(child["default"])
    return filled


def _with_object_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """Give optional objects whose fields all have defaults the default {}, so that theirs apply.

    Of objects with rules the API server wants one that keeps to them as it stands, before it is filled in.
    """
    for name, child in schema.get("properties", {}).items():
        _with_object_defaults(child)
        if child.get("default") is _ABSENT:
            del child["default"]
            continue
        optional = name not in schema.get("required", [])
        if (
            optional
            and child.get("type") == "object"
            and child.get("properties")
            and not child.get("required")
        ):
            child["default"] = _defaults(child) if VALIDATIONS in child else {}
    return schema


def _without_defaults(schema: Any) -> Any:
    """The status is written whole by the operator: the API server must not fill it in."""
    if isinstance(schema, dict):
        return {
            key: {name: _without_defaults(item) for name, item in value.items()}
            if key == "properties"
            else _without_defaults(value)
            for key, value in schema.items()
            if key != "default"
        }
    return schema


def _schema(model: type[TrenchcoatSpec] | type[TrenchcoatStatus]) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True)
    definitions = raw.pop("$defs", {})
    schema: dict[str, Any] = _structural(raw, definitions)
    return schema


def custom_resource_definition() -> dict[str, Any]:
    """The whole CustomResourceDefinition as an object."""
    spec = _with_object_defaults(_schema(TrenchcoatSpec))
    status = _without_defaults(_schema(TrenchcoatStatus))
    columns = [
        {"name": name, "type": kind, "jsonPath": path, "description": text, "priority": priority}
        for name, kind, path, text, priority in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{constants.PLURAL}.{constants.GROUP}"},
        "spec": {
            "group": constants.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": constants.KIND,
                "listKind": f"{constants.KIND}List",
                "plural": constants.PLURAL,
                "singular": constants.SINGULAR,
                "shortNames": [constants.SHORT_NAME],
                "categories": [constants.CATEGORY],
            },
            "versions": [
                {
                    "name": constants.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "A pretrained Llama, linearized Cria by Cria.",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                            VALIDATIONS: [_NAME_RULE],
                        }
                    },
                }
            ],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.2 reads as numbers (1e-4), which PyYAML would leave bare."""


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if re.fullmatch(DECIMAL_PATTERN, text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)


def render() -> str:
    """The definition as YAML text, the content of crds/."""
    header = "# Generated by `make crds` from api/trenchcoat_api; do not edit.\n"
    return header + yaml.dump(custom_resource_definition(), Dumper=_Dumper, sort_keys=False, width=110)


if __name__ == "__main__":
    sys.stdout.write(render())
