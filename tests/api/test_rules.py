"""Rules of the models: the same in pydantic and in the definition."""

import re

import pytest
from trenchcoat_api.constants import MAX_NAME_LENGTH
from trenchcoat_api.crd import custom_resource_definition
from trenchcoat_api.resource import NAME, InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.rules import VALIDATIONS, Text, cel_string

from tests.api.specs import changed, trenchcoat
from tests.api.test_crd import versions_schema, walk

RULED = [(path, schema) for path, schema in walk(versions_schema()) if VALIDATIONS in schema]


def test_texts_become_cel_literals():
    assert cel_string(r"an S3 bucket's \d") == r"'an S3 bucket\'s \\d'"


def test_a_text_with_a_password_in_it_is_not_repeated():
    assert "messageExpression" not in Text("x", "write x", shown=False).validation()
    with pytest.raises(InvalidTrenchcoatError) as refused:
        Trenchcoat.from_document(changed("spec.store.endpoint", "http://user:password@minio:9000"))
    assert "password" not in str(refused.value)


@pytest.mark.parametrize(("path", "schema"), RULED, ids=[path or "object" for path, _ in RULED])
def test_every_rule_is_bounded_told_and_about_a_field_that_there_is(path, schema):
    if schema["type"] == "string":
        assert "maxLength" in schema, "the API server works the rule's cost out from it"
    for rule in schema[VALIDATIONS]:
        message = rule.get("messageExpression") or rule["message"]
        assert re.search(r": \S|^'?\"?write |write ", message), "says no remedy"
        node = schema
        for name in filter(None, rule.get("fieldPath", "").split(".")):
            node = node["properties"][name]


def test_every_python_rule_stands_in_the_definition():
    text = str(custom_resource_definition())
    assert text.count("microBatchSize does not divide batchSize") == 3
    assert text.count("longSequences.multiple does not divide batchSize") == 1
    assert text.count("which leaves no loss") == 1
    assert text.count("cannot change, for the artifacts would be lost") == 3


@pytest.mark.parametrize("name", ["a", "a" * MAX_NAME_LENGTH, "llama-405b"])
def test_names_of_all_allowed_lengths(name):
    assert re.fullmatch(NAME.pattern, name)
    assert Trenchcoat.from_document(changed("metadata.name", name)).metadata.name == name


@pytest.mark.parametrize("name", ["", "a" * (MAX_NAME_LENGTH + 1), "a-", "A", "a.b", "1a"])
def test_names_that_are_none(name):
    with pytest.raises(InvalidTrenchcoatError, match=r"metadata\.name"):
        Trenchcoat.from_document(changed("metadata.name", name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec.model.source", "hf://meta-llama/Llama-3.1-405B"),
        ("spec.model.source", "file:///models/llama"),
        ("spec.data.source", "s3://corpora/redpajama/**/*.jsonl.zst"),
        ("spec.data.source", "file:///text"),
        ("spec.store.endpoint", "https://minio.example:9000/"),
        ("spec.store.endpoint", "http://minio:65535"),
        ("spec.store.bucket", "a.b-c"),
        ("spec.store.prefix", "team/a_b/run.1"),
        ("spec.transfer.learningRate", "5e-2"),
        ("spec.transfer.learningRate", 0.05),
        ("spec.transfer.clip", "0"),
        ("spec.criaLora.lora.dropout", "0"),
        ("spec.scheduling.gpuResource", "example.com/vgpu"),
        ("spec.scheduling.queueName", "team-a"),
        ("spec.pods.cria.image", "registry.example:5000/team/trainer:v1@sha256:" + "0" * 64),
        ("spec.pods.cria.image", "trainer"),
        ("spec.pods.cria.resources", {"cpu": "1.5", "memory": "64Gi", "ephemeralStorage": "1T"}),
        ("spec.pods.cria.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]),
        ("spec.pods.cria.nodeSelector", {"gpu": "h100"}),
        (
            "spec.pods.cria.labels",
            {"sidecar.istio.io/inject": "false", "azure.workload.identity/use": "true"},
        ),
        ("spec.pods.cria.annotations", {"kueue.x-k8s.io/podset-required-topology": "rack"}),
        ("spec.pods.cria.extendedResources", [{"name": "vpc.amazonaws.com/efa", "quantity": "4"}]),
        ("spec.pods.cria.extendedResources", [{"name": "hugepages-2Mi", "quantity": "1Gi"}]),
        ("spec.pods.cria.runtimeClassName", "nvidia"),
    ],
)
def test_good_values_pass(field, value):
    spec = trenchcoat(field, value).to_object()["spec"]
    for name in field.split(".")[1:]:
        spec = spec[name]
    if isinstance(value, dict):
        assert spec.items() >= value.items()
    else:
        assert spec == (str(value) if isinstance(value, float) else value)


def test_volumes_are_passed_on_as_they_are():
    volume = {"name": "scratch", "emptyDir": {"medium": "Memory"}}
    mount = {"name": "scratch", "mountPath": "/scratch", "readOnly": True}
    pod = trenchcoat("spec.pods.cria", {"volumes": [volume], "volumeMounts": [mount]}).spec.pods.cria
    assert (pod.volumes, pod.volume_mounts) == ([volume], [mount])
