"""The CustomResourceDefinition, generated from the models: `python -m trenchcoat_api.crd` prints it."""

import copy
import re
import sys
from typing import Any

import yaml

from trenchcoat_api import constants
from trenchcoat_api.spec import DECIMAL_PATTERN, TrenchcoatSpec
from trenchcoat_api.status import TrenchcoatStatus

_SPEC_RULES = [
    {
        "rule": "self.data.tokens >= self.data.sequenceLength",
        "message": "data.tokens must be at least data.sequenceLength: no sequence would be full",
    },
    {
        "rule": "self.data.sequenceLength > self.attention.window",
        "message": (
            "data.sequenceLength must be greater than attention.window: the linear part would see nothing"
        ),
    },
    {
        "rule": "self.criaLora.objective != 'layerwise' || !('o_proj' in self.criaLora.lora.targetModules)",
        "message": (
            "criaLora.lora.targetModules has o_proj, which the objective layerwise cannot train (it compares "
            "attention before o_proj): remove it, or set criaLora.objective to block"
        ),
    },
    {
        "rule": "self.store.endpoint == oldSelf.store.endpoint && self.store.bucket == oldSelf.store.bucket"
        " && self.store.prefix == oldSelf.store.prefix",
        "message": (
            "store.endpoint, store.bucket and store.prefix cannot change: the artifacts would be lost; "
            "make a new Trenchcoat"
        ),
    },
]

_NAME_RULE = {
    "rule": f"self.metadata.name.size() <= {constants.MAX_NAME_LENGTH} && "
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "message": (
        f"metadata.name must be at most {constants.MAX_NAME_LENGTH} characters, begin with a letter and hold "
        "no dots: the names of its Jobs and pods are made from it"
    ),
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
    ("Message", "string", ".status.conditions[?(@.type=='Stalled')].message", "Why nothing goes on", 1),
    ("Age", "date", ".metadata.creationTimestamp", "Since it was made", 0),
]


def _structural(node: Any, definitions: dict[str, Any]) -> Any:
    """Turn pydantic's JSON schema into the structural subset that the API server takes."""
    if isinstance(node, list):
        return [_structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
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
        return _structural({**variant, **rest}, definitions)

    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: _structural(item, definitions) for name, item in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = _structural(value, definitions)
        elif key not in (
            "title",
            "additionalProperties",
        ):  # titles repeat names; the API server prunes itself
            result[key] = value
    if result.get("x-kubernetes-preserve-unknown-fields"):
        result.pop("additionalProperties", None)
    return result


def _with_object_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """Give optional objects whose fields all have defaults the default {}, so that theirs apply."""
    for name, child in schema.get("properties", {}).items():
        _with_object_defaults(child)
        optional = name not in schema.get("required", [])
        if (
            optional
            and child.get("type") == "object"
            and child.get("properties")
            and not child.get("required")
        ):
            child["default"] = {}
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
    spec["x-kubernetes-validations"] = _SPEC_RULES
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
                            "x-kubernetes-validations": [_NAME_RULE],
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
