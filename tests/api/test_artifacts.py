"""Content keys: stable, and sensitive to exactly what a stage depends on. Digests: those of the content."""

import hashlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Artifacts, Manifest, StoredObject
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.phases import without_adapted_teacher
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.stored import ObjectList, StoreChecksum

from tests.api.specs import trenchcoat

CRIAS = cria_ranges(12, 2)
ALL = set(Stage) - {Stage.SELECT}  # what a spec asks for that does not have wide layers chosen
TRAINED = {Stage.CRIA, Stage.STITCH, Stage.EVALUATE, Stage.EXPORT}
ADAPTED = TRAINED | {Stage.ADAPT}
CHOSEN = {"wide": {"share": "0.25"}}


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
        ("spec.layersPerCria", 3, ALL - {Stage.TOKENIZE, Stage.ADAPT}),
        ("spec.transfer.learningRate", "1e-3", TRAINED),
        (
            "spec.attention.keyMaps",
            "perKeyValueHead",
            TRAINED,
        ),
        ("spec.attention", {"form": "window"}, TRAINED),
        (
            "spec.attention.wide",
            {"layers": [0]},
            TRAINED,
        ),
        ("spec.attention.firstTokens", 0, set()),
        ("spec.data.startPositions.share", "0.5", ADAPTED),
        ("spec.data.startPositions.share", "0.0", set()),
        ("spec.data.startPositions.below", 100, set()),  # of no use without a share
        ("spec.transfer.windowDropout", "0.5", TRAINED),
        ("spec.transfer.teacherProducts", "float8", TRAINED),
        ("spec.transfer.teacherProducts", "dtype", set()),
        ("spec.preset", "paper", ADAPTED),
        ("spec.preset", "shipped", set()),
        ("spec.transfer.epochs", 2, set()),
        ("spec.criaLora.lora.rank", 4, TRAINED),
        ("spec.stitch.learningRate", "1e-3", ADAPTED - {Stage.CRIA}),
        ("spec.stitch.longSequences.share", "0.25", ADAPTED - {Stage.CRIA}),
        ("spec.stitch.longSequences.share", "0.0", set()),
        ("spec.stitch.longSequences.multiple", 8, set()),  # of no use without a share
        ("spec.export.maxShardBytes", 1_000_000, {Stage.EXPORT}),
        ("spec.export.form", "delta", {Stage.EXPORT}),
        ("spec.export.form", "merged", set()),
        ("spec.export.destination", "hf://me/student", {Stage.EXPORT}),
        ("spec.collect.nodes", 7, set()),
        ("spec.collect.batchSize", 7, set()),
        ("spec.evaluate.nodes", 7, set()),
        ("spec.evaluate.gpusPerNode", 8, set()),
        ("spec.stitch.gpusPerNode", 7, set()),
        ("spec.stitch.nodes", 7, {Stage.ADAPT, Stage.EVALUATE}),  # no adapted teacher any more
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
    assert {Stage(name.split("-")[0]) for name in before if before[name] != after.get(name)} == stages


@pytest.mark.parametrize(
    ("fields", "stages"),
    [
        ({"attention": {"form": "window", "featureDim": 32}}, set()),
        ({"attention": {"form": "window", "keyMaps": "perKeyValueHead"}}, set()),
        ({"transfer": {"learningRate": "1e-3", "plateau": {"every": 2}}}, set()),
        ({"transfer": {"batchSize": 4, "xentWeight": "2"}}, set()),
        ({"transfer": {"mseWeight": "1"}}, TRAINED),
        ({"transfer": {"microBatchSize": 2}}, TRAINED),
        ({"attention": {"form": "window", "window": 32}}, TRAINED),
    ],
)
def test_a_window_depends_on_nothing_that_only_feature_maps_read(fields, stages):
    def of(spec):
        spec = TrenchcoatSpec.model_validate(spec)
        return {item.name: item.key for item in Artifacts(spec).all(CRIAS)}

    base = trenchcoat().spec.model_dump(by_alias=True, mode="json") | {"attention": {"form": "window"}}
    before, after = of(base), of(base | fields)
    assert {Stage(name.split("-")[0]) for name in before if before[name] != after[name]} == stages


def test_wide_layers_that_are_chosen_are_one_more_artifact_that_all_training_rests_on():
    before, after = keys(), keys("spec.attention", CHOSEN)
    assert list(after) == [*list(before)[:3], "select", *list(before)[3:]]
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if Stage(name.split("-")[0]) in TRAINED
    }


@pytest.mark.parametrize(
    ("attention", "stages"),
    [
        ({"wide": {"share": "0.5"}}, TRAINED | {Stage.SELECT}),
        ({"window": 128}, TRAINED | {Stage.SELECT}),
        ({"keepSoftmaxLayers": [1]}, TRAINED | {Stage.SELECT}),
        ({"form": "window", "window": 64}, TRAINED),
        ({"form": "window"}, TRAINED | {Stage.SELECT}),
        ({"form": "window", "firstTokens": 2}, TRAINED | {Stage.SELECT}),
        ({"form": "window", "window": 64, "wide": {"share": "0.25", "window": 256}}, TRAINED),
        ({"featureDim": 32}, TRAINED),
    ],
)
def test_layers_are_chosen_anew_for_what_the_choice_depends_on(attention, stages):
    before, after = keys("spec.attention", CHOSEN), keys("spec.attention", CHOSEN | attention)
    assert {Stage(name.split("-")[0]) for name in before if before[name] != after[name]} == stages


def test_the_choice_rests_on_seed_and_text_and_not_on_the_cut_into_crias():
    def select(path=None, value=None):
        spec = trenchcoat(path, value).spec
        return Artifacts(spec.model_copy(update={"attention": type(spec.attention)(**CHOSEN)})).select.key

    assert select() == select("spec.layersPerCria", 3) == select("spec.transfer.learningRate", "1e-3")
    others = {select(), select("spec.seed", 1), select("spec.data.tokens", 2_000_000)}
    assert len(others | {select("spec.dtype", "float32"), select("spec.model.source", "hf://me/it")}) == 5


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({"attention": {"form": "window", "window": 32}}, True),
        ({"attention": {"keepSoftmaxLayers": [1, 5], "featureDim": 16}}, True),
        ({"attention": {"wide": {"share": "0.25"}}}, True),
        ({"transfer": {"epochs": 9, "learningRate": "1e-3"}}, True),
        ({"layersPerCria": 3}, True),
        ({"criaLora": {"learningRate": "1e-3"}}, True),
        ({"criaLora": {"epochs": 1}, "stitch": {"epochs": 2}}, True),  # as many passes in all
        ({"criaLora": {"epochs": 1}}, False),
        ({"stitch": {"epochs": 2}}, False),
        ({"stitch": {"recallShare": "0.1"}}, False),
        ({"stitch": {"lora": {"rank": 8}}}, False),
        ({"stitch": {"gpusPerNode": 8}}, True),
        ({"seed": 1}, False),
        ({"dtype": "float32"}, False),
        ({"data": {"source": "s3://trenchcoat/corpora/*.jsonl", "tokens": 2_000_000}}, False),
    ],
)
def test_students_share_an_adapted_teacher_that_saw_what_they_saw(fields, shares):
    def adapt(changes):
        base = trenchcoat().spec.model_dump(by_alias=True, mode="json", exclude_unset=True)
        return Artifacts(TrenchcoatSpec.model_validate(base | changes)).adapt.key

    assert (adapt(fields) == adapt({})) is shares


def test_an_evaluation_without_the_adapted_teacher_is_another():
    spec = trenchcoat().spec
    bare = without_adapted_teacher(spec)
    assert Artifacts(spec).evaluate(CRIAS).key != Artifacts(bare).evaluate(CRIAS).key
    never = trenchcoat("spec.evaluate", {"adaptedTeacher": "never"}).spec
    assert Artifacts(never).all(CRIAS) == Artifacts(bare).all(CRIAS)
    always = trenchcoat("spec.evaluate", {"adaptedTeacher": "always"}).spec
    assert Artifacts(always).all(CRIAS) == Artifacts(spec).all(CRIAS)
    # As if there was no adapted teacher.
    assert Artifacts(bare).evaluate(CRIAS).key == GOLDEN["evaluate"]


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


@pytest.mark.parametrize(
    "fields",
    [
        {"otherText": {"source": "s3://trenchcoat/other.txt"}},
        {"tasks": {"source": "s3://trenchcoat/tasks", "names": ["colours"]}},
    ],
)
def test_what_else_is_evaluated_is_in_the_evaluations_key_alone(fields):
    before, after = keys("spec.evaluate", {}), keys("spec.evaluate", fields)
    assert {name for name in before if before[name] != after[name]} == {"evaluate"}


def test_a_token_is_in_no_key():
    delivered = {"destination": "hf://me/student"}
    before, after = (
        keys("spec.export", fields)
        for fields in (delivered, {**delivered, "tokenSecretRef": {"name": "hf", "key": "token"}})
    )
    assert before == after


def test_who_is_told_of_losses_is_in_no_key():
    told = {
        "tensorBoard": True,
        "mlflow": {"uri": "https://mlflow.example/of/us"},
        "trackio": {"uri": "https://trackio.example", "tokenSecretRef": {"name": "trackio", "key": "token"}},
    }
    assert keys() == keys("spec.tracking", told)


def manifest(*objects: StoredObject, lists: list[ObjectList] | None = None, year: int = 2026) -> Manifest:
    moment = datetime(year, 1, 1, tzinfo=UTC)
    return Manifest(
        stage=Stage.TOKENIZE,
        key="k",
        objects=list(objects),
        lists=lists or [],
        started_at=moment,
        completed_at=moment,
        seconds=year,
    )


def test_a_digest_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    contents = {"a/1": b"one", "a/2": b"two", "b": b""}
    objects = []
    for path, data in contents.items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        objects.append(StoredObject(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    said = subprocess.run(["sha256sum", *contents], cwd=tmp_path, capture_output=True, check=True)
    assert manifest(*objects).digest == f"sha256:{hashlib.sha256(said.stdout).hexdigest()}"


def test_a_digest_tells_of_the_content_and_of_nothing_else() -> None:
    one = StoredObject(path="a", size=1, sha256="0" * 64)
    copied = StoredObject(path="a", size=1, by_store=StoreChecksum(etag="0-1", part_sizes=[1]))
    listed = ObjectList(path="manifest/0", sha256="0" * 64, first="a", count=1, size=1)
    others = [
        manifest(),
        manifest(one),
        manifest(one.model_copy(update={"path": "b"})),
        manifest(one.model_copy(update={"sha256": "1" * 64})),
        manifest(copied),
        manifest(copied.model_copy(update={"by_store": StoreChecksum(etag="1-1", part_sizes=[1])})),
        manifest(lists=[listed]),
    ]
    assert len({other.digest for other in others}) == len(others)
    assert manifest(one, year=2030).digest == manifest(one).digest


def test_a_folded_manifest_tells_the_same_size_and_digest() -> None:
    objects = [StoredObject(path=path, size=7, sha256=path * 64) for path in "ab"]
    listed = ObjectList(path="manifest/0", sha256="0" * 64, first="a", count=2, size=14)
    for whole in (manifest(*objects), manifest(lists=[listed]), manifest()):
        folded = whole.folded()
        assert len(folded.objects) == 1 and not folded.lists
        assert (folded.size, folded.digest) == (whole.size, whole.digest)
        again = Manifest.model_validate_json(folded.model_dump_json(by_alias=True)).folded()
        assert (again.size, again.digest) == (whole.size, whole.digest)


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
    "evaluate": "1e94a25e9b16325b",
}
