"""Content keys: stable, and sensitive to exactly what a stage depends on."""

import pytest
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.stages import Stage

from tests.api.specs import trenchcoat

CRIAS = cria_ranges(12, 2)
ALL = set(Stage)


def keys(path=None, value=None):
    return {item.name: item.key for item in Artifacts(trenchcoat(path, value).spec).all(CRIAS)}


def test_keys_are_those_of_the_first_release():
    # A changed key makes every user compute everything again: raise CODE_VERSIONS on purpose only.
    assert keys()["tokenize"] == GOLDEN["tokenize"]
    assert keys()["stitch"] == GOLDEN["stitch"]


@pytest.mark.parametrize(
    ("path", "value", "stages"),
    [
        ("spec.data.tokens", 2_000_000, ALL - {Stage.SHARD}),
        ("spec.data.source", "hf://datasets/me/text", ALL - {Stage.SHARD}),
        ("spec.model.source", "s3://trenchcoat/teachers/other", ALL),
        ("spec.layersPerCria", 3, ALL - {Stage.TOKENIZE}),
        ("spec.transfer.learningRate", "1e-3", {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}),
        (
            "spec.attention.keyMaps",
            "perKeyValueHead",
            {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT},
        ),
        ("spec.transfer.windowDropout", "0.5", {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}),
        ("spec.preset", "paper", {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}),
        ("spec.preset", "shipped", set()),
        ("spec.transfer.epochs", 2, set()),
        ("spec.criaLora.lora.rank", 4, {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}),
        ("spec.stitch.learningRate", "1e-3", {Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}),
        ("spec.export.maxShardBytes", 1_000_000, {Stage.EXPORT}),
        ("spec.collect.nodes", 7, set()),
        ("spec.stitch.nodes", 7, set()),
        ("spec.scheduling.maxParallelCrias", 1, set()),
        ("spec.suspend", True, set()),
        ("spec.pods.cria.image", "other", set()),
        ("spec.pods.cria.deadlineSeconds", 60, set()),
        ("spec.gates.maxCriaError", "0.2", set()),
        ("spec.gates.maxLossGrowth", "10", set()),
        ("spec.retention", "Delete", set()),
        ("spec.store.endpoint", "https://elsewhere:9000", set()),
        ("metadata.name", "other", set()),
    ],
)
def test_a_change_touches_what_depends_on_it_and_nothing_else(path, value, stages):
    before, after = keys(), keys(path, value)
    assert {Stage(name.split("-")[0]) for name in before if before[name] != after[name]} == stages


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("config", "english", True),
        ("split", "validation", True),
        ("split", "train", False),
        ("revision", "v2", True),
        ("tokenSecretRef", {"name": "hf", "key": "token"}, False),
    ],
)
def test_what_is_read_of_a_data_set_is_in_its_key(field, value, changes):
    source = {"source": "hf://datasets/me/text"}
    before, after = (keys("spec.data", fields) for fields in (source, {**source, field: value}))
    assert (before["tokenize"] != after["tokenize"]) is changes


def test_crias_have_keys_of_their_own():
    artifacts = Artifacts(trenchcoat().spec)
    assert len({artifacts.cria(cria).key for cria in CRIAS}) == len(CRIAS)


def test_places_stand_below_the_prefix():
    artifact = Artifacts(trenchcoat("spec.store.prefix", "team/a").spec).cria(CRIAS[3])
    assert artifact.name == "cria-03"
    assert artifact.manifest_path == f"team/a/artifacts/cria/{artifact.key}/manifest.json"


GOLDEN = {
    "tokenize": "5c6478c85894e838",
    "stitch": "81d58b5f5cfda0a9",
}
