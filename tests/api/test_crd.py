"""The generated definition: current, structural, small enough for client-side apply."""

import json
from pathlib import Path

import yaml
from trenchcoat_api.crd import custom_resource_definition, render
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec

from tests.api.specs import changed

CHECKED_IN = Path(__file__).parents[2] / "crds" / "trenchcoat.dev_trenchcoats.yaml"


def walk(schema, path=""):
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[]")


def versions_schema():
    return custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_checked_in_file_is_current():
    assert CHECKED_IN.read_text() == render(), "run `make crds`"


def test_small_enough_for_client_side_apply():
    # kubectl apply keeps a copy, as JSON, in an annotation, and annotations end at 256 KiB.
    assert len(json.dumps(yaml.safe_load(render()))) < 200_000


def test_every_field_is_typed_and_described():
    for path, schema in walk(versions_schema()):
        assert "type" in schema, path
        if path and "[]" not in path and path.split(".")[1] in ("spec", "status"):
            assert schema.get("description") or path in (".spec", ".status"), path


def test_nothing_a_structural_schema_forbids():
    for path, schema in walk(versions_schema()):
        assert not schema.keys() & {"$ref", "anyOf", "allOf", "title", "const"}, path


def apply_defaults(schema, value):
    for name, child in schema.get("properties", {}).items():
        if name not in value and "default" in child:
            value[name] = child["default"] if not isinstance(child["default"], dict) else {}
        if isinstance(value.get(name), dict):
            apply_defaults(child, value[name])
    return value


def test_the_api_server_fills_in_what_pydantic_would():
    body = changed("spec.preset", None)["spec"]
    bare = {key: body[key] for key in ("model", "data", "store", "layersPerCria")}
    del bare["data"]["tokens"]
    spec_schema = versions_schema()["properties"]["spec"]
    filled = apply_defaults(spec_schema, yaml.safe_load(yaml.safe_dump(bare)))
    wanted = changed({"spec.preset": None, "spec.data.tokens": None})
    assert TrenchcoatSpec.model_validate(filled) == Trenchcoat.from_document(wanted).spec


def test_the_api_server_leaves_to_the_preset_what_the_user_has_not_set():
    spec_schema = versions_schema()["properties"]["spec"]
    filled = apply_defaults(spec_schema, {"data": {"source": "s3://b/x"}})
    assert "preset" not in filled
    assert not filled["attention"].keys() & {"form", "window", "firstTokens", "wide"}
    assert not filled["stitch"].keys() & {"learningRate", "recallShare"}
    assert filled["stitch"]["longSequences"] == {}
    assert "tokens" not in filled["data"]
    assert not any("epochs" in filled[part] for part in ("transfer", "criaLora", "stitch"))


def test_strings_that_look_like_numbers_are_quoted():
    # Kubernetes reads YAML 1.2, where a bare 1e-4 is a float; the schema says string.
    assert "default: '1e-4'" in render()


def test_the_api_server_adds_no_object_that_may_be_left_out_as_a_whole():
    attention = versions_schema()["properties"]["spec"]["properties"]["attention"]
    assert "wide" not in apply_defaults(attention, {})
    assert apply_defaults(attention, {"wide": {"share": "0.25"}})["wide"] == {"share": "0.25"}
